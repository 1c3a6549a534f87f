"""Is there a GPU, and which? Answered without torch, which is not imported to hear "no"."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashmoe.errors import UsageError

DeviceName = Literal["cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")
_QUERY = (
    "--query-gpu=name,memory.total,memory.free,driver_version",
    "--format=csv,noheader,nounits",
)
_QUERY_SECONDS = 10.0


@dataclass(frozen=True)
class Gpu:
    """A card. vram, free: its memory, and what nobody has taken, in bytes; None where that is not
    told, as where only /proc was there to ask."""

    name: str
    vram: int | None
    driver: str
    free: int | None = None


def find_gpus(
    root: Path = Path("/"), query: Callable[[], str | None] | None = None
) -> tuple[Gpu, ...]:
    """The cards of this machine; none without a driver.

    root: where /dev and /proc begin. query: what nvidia-smi prints, None where it is missing or
    fails; the driver's files in /proc, which do not tell how much memory there is, are read then.
    """
    if not driver_present(root):
        return ()
    answer = (query or _ask_nvidia_smi)()
    return _from_proc(root) if answer is None else tuple(map(_parsed, answer.splitlines()))


def _ask_nvidia_smi() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = (program, *_QUERY)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a driver that does not match it, or hangs: /proc may still tell
    return done.stdout


def _parsed(line: str) -> Gpu:
    """NVIDIA H200, 143771, 143104, 580.159.03: memory in MiB, or "[N/A]"."""
    name, memory, free, driver = (part.strip() for part in line.rsplit(",", 3))
    return Gpu(name, _mebibytes(memory), driver, _mebibytes(free))


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.isdigit() else None


def _from_proc(root: Path) -> tuple[Gpu, ...]:
    base = root / "proc/driver/nvidia"
    files = sorted(base.glob("gpus/*/information"))
    return tuple(Gpu(_model(file.read_text()), None, _driver(base / "version")) for file in files)


def _model(text: str) -> str:
    """Of a file whose lines are "Key: value"."""
    fields = dict(line.partition(":")[::2] for line in text.splitlines())
    return fields.get("Model", "unknown").strip()


def _driver(version: Path) -> str:
    """NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.03  Release Build ..."""
    words = version.read_text().split() if version.exists() else []
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def driver_present(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA driver shows a card. root: where /dev begins (for tests)."""
    return any((root / "dev").glob("nvidia[0-9]*"))


def missing_packages() -> list[str]:
    """Packages of flashmoe[cuda] that are not installed."""
    return [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]


def pick_device(wanted: str, root: Path = Path("/")) -> tuple[DeviceName, str]:
    """The device to use, and why. wanted: auto, cpu or cuda.

    Raises UsageError for another name, or for cuda without a driver or the packages it needs.
    """
    if wanted not in DEVICES:
        raise UsageError(
            "unknown device", where="--device", expected=" | ".join(DEVICES), got=wanted
        )
    if wanted == "cpu":
        return "cpu", "asked for"
    missing, driver = missing_packages(), driver_present(root)
    if driver and not missing:
        return "cuda", "asked for" if wanted == "cuda" else "an NVIDIA driver is present"
    reason = "no NVIDIA driver" if not driver else f"{' and '.join(missing)} not installed"
    if wanted == "cuda":
        hint = "Install flashmoe[cuda]" if driver else "Use --device cpu, or auto"
        raise UsageError(f"CUDA cannot be used: {reason}", where="--device", hint=hint)
    return "cpu", reason


def settle_device(reason: str, wanted: str, lacks: str | None) -> tuple[DeviceName, str]:
    """The card that `pick_device` chose for a reason, or the CPU for a model that it cannot run.

    lacks: what the model has that the CUDA backend has not (planning.card_lacks). Raises UsageError
    where such a model was to run on a card all the same.
    """
    if lacks is None:
        return "cuda", reason
    if wanted == "cuda":
        raise UsageError(
            "this model does not run on a card yet",
            where=f"--device cuda, {lacks}",
            hint="Use --device cpu, or auto",
        )
    return "cpu", f"{lacks} does not run on a card yet"
