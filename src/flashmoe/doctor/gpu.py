"""What doctor says about graphics cards: driver, memory, packages. torch is not imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from flashmoe.doctor.findings import Finding
from flashmoe.files import storage_errors
from flashmoe.ops.devices import Gpu, driver_present, find_gpus, missing_packages
from flashmoe.sizes import format_size

# Weights that stay, context and workspace of a model of 30B parameters take about as much.
_SMALL_CARD: Final = 4 << 30
_INSTALL: Final = "pip install 'flashmoe[cuda]'"
# By CUDA's major version, the oldest driver that runs it: NVIDIA's table of minor compatibility.
_DRIVERS: Final = {11: 450, 12: 525, 13: 580}


def check_gpus(root: Path) -> Iterator[Finding]:
    """A line per card, then one about the packages. root: where /dev and /proc begin."""
    if not driver_present(root):
        yield Finding("gpu", "ok", "none: the CPU computes", value="none")
        return
    gpus = find_gpus(root)
    if not gpus:
        advice = "Reinstall the driver, and restart: nvidia-smi should list the card"
        yield Finding("gpu", "warn", "a device, but the driver names no card", advice, "unknown")
    yield from map(_card, gpus)
    yield _packages(gpus[0].driver if gpus else "")


def _card(gpu: Gpu) -> Finding:
    text = f"{gpu.name}, {_memory(gpu)}, driver {gpu.driver}"
    if gpu.vram is None:
        advice = "Install nvidia-smi of the driver's version, or name its memory with --vram"
        return Finding("gpu", "warn", text, advice, gpu.name)
    if gpu.free is not None and gpu.free < _SMALL_CARD:
        advice = "Stop what else runs on it (nvidia-smi lists it), or use --device cpu"
        return Finding("gpu", "warn", text, advice, gpu.name)
    return Finding("gpu", "ok", text, value=gpu.name)


def _memory(gpu: Gpu) -> str:
    if gpu.vram is None:
        return "memory not told"
    free = "" if gpu.free is None else f"{format_size(gpu.free)} free of "
    return f"{free}{format_size(gpu.vram)}"


def _packages(driver: str) -> Finding:
    """Whether torch and Triton are there, and go with each other and the driver."""
    if missing := missing_packages():
        text = f"{' and '.join(missing)} not installed: the card is not used"
        return Finding("cuda packages", "warn", text, f"To use it: {_INSTALL}", "unused")
    torch, cuda = f"torch {_version('torch')}", cuda_of_torch()
    if cuda is None:
        advice = "Install one that is: https://pytorch.org/get-started/locally names the command"
        return Finding("cuda packages", "warn", f"{torch}, not built for CUDA", advice, "unused")
    text = f"{torch} for CUDA {cuda}, triton {_version('triton')}"
    least = _DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if driver and driver[:1].isdigit() and int(driver.partition(".")[0]) < least:
        advice = f"Update the driver to {least} or later, or take a torch for an older CUDA"
        return Finding("cuda packages", "fail", f"{text}: the driver is too old", advice, "unused")
    return Finding("cuda packages", "ok", text, value="cuda")


def cuda_of_torch() -> str | None:
    """The CUDA version that the installed torch was built for, as 12.8; None if for none.

    Read from its version file: importing torch takes seconds. Raises StorageError.
    """
    spec = find_spec("torch")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / "version.py"
    if file is None or not file.exists():
        return None
    with storage_errors("cannot read", file):
        found = re.search(r"""^cuda\b[^=\n]*=\s*['"]([\d.]+)['"]""", file.read_text(), re.MULTILINE)
    return None if found is None else found.group(1)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # importable, but nobody's distribution says so
        return "of unknown version"
