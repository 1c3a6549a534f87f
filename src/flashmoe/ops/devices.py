"""Is there a GPU? Answered from the file system, so that torch is not imported to hear "no"."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from flashmoe.errors import UsageError

DeviceName = Literal["cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")


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
