"""Settings of an engine, and every environment variable that flashmoe reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashmoe.errors import UsageError
from flashmoe.routing import RoutingOptions

# One reader per read in flight: 4-8 reads of an expert's size saturate an SSD.
DEFAULT_READERS = 8
DEFAULT_CONTEXT = 4096
# Kernel threads or readers: more than the largest machines have; each takes a stack.
MOST_THREADS = 1024

# Names the interpreter that has the peer's packages, for `flashmoe bench compare` and its tests.
PEER_PYTHON = "FLASHMOE_PEER_PYTHON"

Verify = Literal["first", "always", "never"]
Prefetch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class EngineSettings:
    """What a user can choose about an engine; None or "auto" leaves it to flashmoe.

    ram: hard limit in bytes or as text ("3G", "25%"). cache: experts kept in memory: "auto",
    "all", 0, bytes, or text. threads: kernel threads. context_length: tokens per sequence.
    experts_per_token: fewer than the model's own (lossy). isa: kernels to use. verify: when the
    checksum of an expert is compared with what was read. prefetch: read the next layer's likely
    experts while the disk is idle; "auto": where measured to pay. lock: keep the resident weights
    from being swapped out (mlock). device: "auto", "cpu" or "cuda". vram: hard limit of everything
    this process has on the card, in bytes or as text. hybrid: let the CPU compute experts in
    RAM where that is faster than bringing them to the card; results then differ by rounding.
    parallel: sequences that may run at once, each with room for context_length tokens.
    prefix_ram: memory for beginnings of sequences that are kept for later requests, in bytes or
    as text. routing: lossy rules (routing.py). trace: a new file that records what routers say
    (docs/traces.md).
    """

    ram: int | str | None = None
    cache: int | str = "auto"
    threads: int | None = None
    context_length: int | None = None
    experts_per_token: int | None = None
    isa: str = "auto"
    verify: Verify = "first"
    readers: int = DEFAULT_READERS
    prefetch: Prefetch = "auto"
    lock: bool = False
    device: str = "auto"
    vram: int | str | None = None
    hybrid: bool = False
    parallel: int = 1
    prefix_ram: int | str = 0
    routing: RoutingOptions | str = ""
    trace: Path | str | None = None

    def __post_init__(self) -> None:
        rules = self.rules
        if rules.k is not None and self.experts_per_token not in (None, rules.k):
            raise UsageError(
                "two numbers of experts per token",
                where="experts_per_token, routing",
                got=f"{self.experts_per_token} and k={rules.k}",
                hint="Leave one of them out",
            )
        if rules.k is not None:
            object.__setattr__(self, "experts_per_token", rules.k)
        for name in ("context_length", "experts_per_token", "parallel"):
            _check_count(name, getattr(self, name))
        for name in ("threads", "readers"):
            _check_count(name, getattr(self, name), MOST_THREADS)
        _check_choice("verify", self.verify, ("first", "always", "never"))
        _check_choice("prefetch", self.prefetch, ("auto", "on", "off"))

    @property
    def rules(self) -> RoutingOptions:
        """`routing`, parsed."""
        given = self.routing
        return RoutingOptions.parse(given) if isinstance(given, str) else given


def _check_count(name: str, value: object, most: int | None = None) -> None:
    """None leaves the choice to flashmoe."""
    if value is None or (isinstance(value, int) and 1 <= value <= (most or value)):
        return
    expected = "an integer of at least 1" if most is None else f"an integer from 1 to {most}"
    raise UsageError("wrong value", where=name, expected=expected, got=repr(value))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError("unknown choice", where=name, expected=" | ".join(choices), got=value)


def plain_environment() -> dict[str, str]:
    """The environment for a measured process: no setting of ours but the choice of kernels."""
    kept = "FLASHMOE_ISA"
    return {k: v for k, v in os.environ.items() if not k.startswith("FLASHMOE_") or k == kept}


def state_directory() -> Path:
    """Where a user's history belongs: XDG_STATE_HOME, or ~/.local/state."""
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    # The specification has relative paths ignored.
    return (given if given.is_absolute() else _home() / ".local" / "state") / "flashmoe"


def data_directory() -> Path:
    """Where pulled models belong: FLASHMOE_HOME, else XDG_DATA_HOME or ~/.local/share."""
    home = os.environ.get("FLASHMOE_HOME", "")
    if home:
        return Path(home).absolute()
    given = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (given if given.is_absolute() else _home() / ".local" / "share") / "flashmoe"


def _home() -> Path:
    """Raises UsageError for a user without one, as containers have them."""
    try:
        return Path.home()
    except RuntimeError as error:
        hint = "Set HOME, or FLASHMOE_HOME for the models directory"
        raise UsageError("there is no home directory", where="HOME", hint=hint) from error


def environment() -> dict[str, object]:
    """Defaults from FLASHMOE_ISA, _RAM, _CACHE, _PREFETCH, _DEVICE, _VRAM and _THREADS."""
    found: dict[str, object] = {}
    for name in ("isa", "ram", "cache", "prefetch", "device", "vram"):
        if value := os.environ.get(f"FLASHMOE_{name.upper()}"):
            found[name] = value
    if threads := os.environ.get("FLASHMOE_THREADS"):
        if not threads.isdecimal():
            raise UsageError("not a number", where="FLASHMOE_THREADS", got=repr(threads))
        found["threads"] = int(threads)
    return found
