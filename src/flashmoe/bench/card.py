"""Speed on a GPU beside what card, bus and disk allow, measured in the same run.

The bound of a step is the slowest of three: weights touched at the card's copy rate (bytes moved
one way), records copied at the rate of pinned host memory to card, records read at the disk's rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import flashmoe
from flashmoe.api import device_for
from flashmoe.bench.apart import Progress
from flashmoe.bench.decode import touched_bytes
from flashmoe.bench.disk import Case, measure, supports_direct
from flashmoe.bench.stretch import random_ids, spread
from flashmoe.errors import UsageError
from flashmoe.settings import DEFAULT_READERS
from flashmoe.store.model import StoredModel, open_model

if TYPE_CHECKING:
    from flashmoe.api import Model
    from flashmoe.generate.engine import Session

# Whose time a phase of a pass is, where not the card's (ops/cuda/clock.py).
_TIERS = {
    "copies": "bus",
    "disk_wait": "disk",
    "planning": "host",
    "host_experts": "host",
    "python": "host",
}
_RATE_BYTES = 1 << 30
_RATE_ROUNDS = 10
# Tokens before the decode windows.
_BEFORE_DECODE = 32


@dataclass(frozen=True)
class CardOptions:
    """prompt: tokens of the timed prefill. tokens: decoded per window, after `prompt` more."""

    prompt: int = 4096
    tokens: int = 64
    repeat: int = 3
    seed: int = 0
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompt", "tokens", "repeat"):
            if getattr(self, name) < 1:
                raise UsageError("must be at least 1", where=f"--{name}", got=getattr(self, name))


def measure_card(path: Path, options: CardOptions, progress: Progress) -> dict[str, Any]:
    """The figures of `flashmoe bench card`. Raises what flashmoe.load raises."""
    device_for(path, "cuda")  # refuses, before anything is measured, where there is none
    pack = open_model(path)
    progress("measuring disk, card and bus")
    rates = {**card_rates(), "disk_bytes_per_s": _disk_rate(pack)}
    progress("loading the model")
    context = max(options.prompt, _BEFORE_DECODE) + (options.repeat + 1) * options.tokens
    with flashmoe.load(path, context_length=context, **options.engine) as model:
        progress("prefill")
        prefill = _prefill(model, options)
        progress("decode")
        windows = _decode(model, options)
        touched = touched_bytes(pack, model.stats.experts_per_token)
        return _figures(model, rates, prefill, windows, touched)


def card_rates() -> dict[str, Any]:
    """The card's name, its copy rate (bytes copied, one way) and that of pinned memory to it."""
    import torch

    there = torch.empty(_RATE_BYTES, dtype=torch.uint8, device="cuda").random_()
    here = torch.empty(_RATE_BYTES, dtype=torch.uint8, pin_memory=True)
    copy = torch.empty_like(there)
    rates = {
        "card": torch.cuda.get_device_name(),
        "copy_bytes_per_s": _rate(copy, there),
        "host_to_card_bytes_per_s": _rate(there, here),
    }
    del there, here, copy
    torch.cuda.empty_cache()  # the model's limit counts from here
    return rates


def _rate(target: Any, source: Any) -> float:
    import torch

    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    begin = perf_counter()
    for _ in range(_RATE_ROUNDS):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return _RATE_ROUNDS * _RATE_BYTES / (perf_counter() - begin)


def _disk_rate(pack: StoredModel) -> float:
    files = sorted(set(pack.files))
    record = pack.manifest.experts.record_bytes
    case = Case(record, DEFAULT_READERS, supports_direct(files[0]), huge_pages=True)
    result = measure(files, case, 2.0, 0)
    return result.nbytes / result.seconds


def _prefill(model: Model, options: CardOptions) -> list[dict[str, Any]]:
    """Each repetition is a sequence of its own; the first fills what was empty."""
    return [_prompt(model, options, number) for number in range(options.repeat)]


def _prompt(model: Model, options: CardOptions, number: int) -> dict[str, Any]:
    session = model.session()
    ids = random_ids(session.engine.vocab_size, options.prompt, options.seed + number)
    before, earlier = _counts(model, session), dict(session.engine.prefill.phases)
    begin = perf_counter()
    session.feed(ids)
    seconds, after = perf_counter() - begin, _counts(model, session)
    times = time_share(earlier, session.engine.prefill.phases)
    return {**_row(before, after, seconds, options.prompt), "time_share": times}


def _decode(model: Model, options: CardOptions) -> list[dict[str, Any]]:
    session = model.session()
    count = (options.repeat + 1) * options.tokens
    ids = random_ids(session.engine.vocab_size, _BEFORE_DECODE + count, options.seed + 100)
    session.feed(ids[:_BEFORE_DECODE])
    rows = []
    for first in range(_BEFORE_DECODE, len(ids), options.tokens):
        before, earlier = _counts(model, session), dict(session.engine.decode.phases)
        begin = perf_counter()
        for id in ids[first : first + options.tokens]:
            session.step(id)
        seconds = perf_counter() - begin
        row = _row(before, _counts(model, session), seconds, options.tokens)
        times = time_share(earlier, session.engine.decode.phases)
        rows.append({**row, "time_share": times})
    return rows[1:]  # the first window warms the slots


def time_share(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Shares of the time between two readings of PhaseTimes.phases: the card at work (its gaps
    between kernels included), waiting for the bus, for the disk, and for the host's planning,
    share of the experts and Python."""
    shares = dict.fromkeys(("card", "bus", "disk", "host"), 0.0)
    for phase, seconds in after.items():
        shares[_TIERS.get(phase, "card")] += seconds - before.get(phase, 0.0)
    total = sum(shares.values())
    return {name: seconds / total if total > 0 else 0.0 for name, seconds in shares.items()}


def _counts(model: Model, session: Session) -> list[int]:
    tiers: Any = getattr(session.engine.experts, "stats")  # noqa: B009
    return [tiers.wanted, tiers.device_hits, tiers.ram_hits, tiers.copied_bytes,
            tiers.idle_bytes, tiers.on_host, model.stats.bytes_read]  # fmt: skip


def _row(before: list[int], after: list[int], seconds: float, tokens: int) -> dict[str, Any]:
    changes = (b - a for a, b in zip(before, after, strict=True))
    wanted, device, ram, copied, idle, host, read = changes
    share = {"card": device, "ram": ram, "disk": wanted - device - ram}
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "copied_bytes": copied,
        "guessed_for_nothing_bytes": idle,
        "computed_on_host": host,
        "disk_bytes": read,
        "share": {name: count / wanted for name, count in share.items()} if wanted else None,
    }


def _figures(
    model: Model,
    rates: dict[str, Any],
    prefill: list[dict[str, Any]],
    windows: list[dict[str, Any]],
    touched: int,
) -> dict[str, Any]:
    for row, weights in [*((r, 0) for r in prefill), *((r, touched) for r in windows)]:
        bounds = {
            "card": weights * row["tokens"] / rates["copy_bytes_per_s"],
            "bus": (row["copied_bytes"] - row["guessed_for_nothing_bytes"])
            / rates["host_to_card_bytes_per_s"],
            "disk": row["disk_bytes"] / rates["disk_bytes_per_s"],
        }
        row["bound"] = max(bounds, key=lambda name: bounds[name])
        row["bound_fraction"] = bounds[row["bound"]] / row["seconds"]
    return {
        "rates": rates,
        "prefill": prefill,
        "decode": windows,
        "prefill_tokens_per_second": spread([row["tokens_per_second"] for row in prefill]),
        "decode_tokens_per_second": spread([row["tokens_per_second"] for row in windows]),
        "bytes_touched_per_token": touched,
        "device_slots": model.stats.device_slots,
        "device_bytes": model.stats.device_bytes,
        "ram_slots": model.stats.cache_slots,
        "hybrid": model.stats.hybrid,
    }
