"""How long it takes from a command to the first token, and what of it is reading.

Every run is a new process. Cold: the page cache holds none of the pack's data files. Warm: it holds
what the system kept of them; the engine itself drops what it has read. Python's and our own modules
were loaded before and are counted by `help_seconds` alone.

Two limits are measured before every run: the rate of the disk, and that at which memory can be
taken. A virtual machine may have to ask its host for every page that was not in use lately.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import flashmoe
from flashmoe import _native
from flashmoe.bench.apart import Progress, run_apart, run_cold
from flashmoe.bench.disk import Case, measure, supports_direct
from flashmoe.bench.record import Start
from flashmoe.errors import UsageError
from flashmoe.ops.threads import default_threads
from flashmoe.store import format as fmt
from flashmoe.store.model import StoredModel, open_model
from flashmoe.store.resident import BLOCK_BYTES, READS_IN_FLIGHT

RESIDENT = "resident weights"
"""The part of `Stats.open_seconds` in which weights are read."""

SETTLE_S = 10.0
"""Memory that a process gave back is cheap to take again until the host has taken it, 2 to 3
seconds later or more: a run right after another would be flattered."""
SAMPLE_S = 1.0
_FRESH_BYTES = 256 << 20


@dataclass(frozen=True)
class StartupOptions:
    """engine: settings of flashmoe.load."""

    repeat: int = 3
    start: Start = "cold"
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise UsageError("must be at least 1", where="--repeat", got=self.repeat)


def measure_startup(path: Path, options: StartupOptions, progress: Progress) -> dict[str, Any]:
    """The figures of `flashmoe bench startup`; see docs/benchmarks.md."""
    apart = run_cold if options.start == "cold" else run_apart
    pack, helps, runs = open_model(path), [], []
    for number in range(options.repeat):
        progress(f"run {number + 1} of {options.repeat}")
        helps.append(_help_seconds())
        limits = _limits(pack)
        runs.append({**apart(path, open_once, (options.engine,), progress), **limits})
    names = [name for name in runs[0] if name != "parts"]
    return {
        "help_seconds": median(helps),
        **{name: median(run[name] for run in runs) for name in names},
        "parts": {name: median(run["parts"][name] for run in runs) for name in runs[0]["parts"]},
        "pack_bytes": pack.resident_bytes + pack.expert_bytes,
        "resident_bytes": pack.resident_bytes,
        "layers": len(pack.manifest.layers),
        "expert_files": len(pack.files),
        "runs": runs,
    }


def open_once(path: Path, engine: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Times of opening a model and of one token."""
    progress("opening the model")
    begin = perf_counter()
    with flashmoe.load(path, **{"device": "cpu", **engine}) as model:
        opened = perf_counter()
        model.session().feed([0])
        fed = perf_counter()
        parts, nbytes = dict(model.stats.open_seconds), model.stats.bytes_read
    seconds = opened - begin
    return {
        "open_seconds": seconds,
        "open_seconds_but_weights": seconds - parts[RESIDENT],
        "resident_bytes_per_s": open_model(path).resident_bytes / parts[RESIDENT],
        "first_token_seconds": fed - opened,
        "first_token_bytes_read": nbytes,
        "parts": parts,
    }


def _limits(pack: StoredModel) -> dict[str, float]:
    """Rates of the disk, read as the resident weights are, and of taking memory."""
    time.sleep(SETTLE_S)
    file = pack.path / fmt.RESIDENT
    block = min(BLOCK_BYTES, file.stat().st_size // fmt.PAGE * fmt.PAGE)
    case = Case(block, READS_IN_FLIGHT, supports_direct(file), huge_pages=True)
    read = measure(file, case, SAMPLE_S)
    arena = _native.Arena(_FRESH_BYTES, huge_pages=True, threads=0)
    begin = perf_counter()
    arena.populate(0, _FRESH_BYTES, default_threads())
    taken = perf_counter() - begin
    return {
        "disk_bytes_per_s": read.nbytes / read.seconds,
        "fresh_memory_bytes_per_s": _FRESH_BYTES / taken,
    }


def _help_seconds() -> float:
    code = "from flashmoe.cli import main; main()"
    begin = perf_counter()
    subprocess.run([sys.executable, "-c", code, "--help"], stdout=subprocess.DEVNULL, check=True)
    return perf_counter() - begin
