"""How long it takes from a command to the first token, and what of it is reading.

Every run is a new process. Cold: the page cache holds none of the pack's data files. Warm: it holds
what the system kept of them; the engine itself drops what it has read. Python's and our own modules
were loaded before and are counted by `help_seconds` alone.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import flashmoe
from flashmoe.bench.apart import Progress, run_apart, run_cold
from flashmoe.bench.record import Start
from flashmoe.errors import UsageError
from flashmoe.store.packed import PackedModel

RESIDENT = "resident weights"
"""The part of `Stats.open_seconds` in which weights are read."""


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
    helps, runs = [], []
    for number in range(options.repeat):
        progress(f"run {number + 1} of {options.repeat}")
        helps.append(_help_seconds())
        runs.append(apart(path, open_once, (options.engine,), progress))
    names = ("open_seconds", "open_seconds_but_weights", "first_token_seconds")
    pack = PackedModel.open(path)
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
        parts = dict(model.stats.open_seconds)
    seconds = opened - begin
    return {
        "open_seconds": seconds,
        "open_seconds_but_weights": seconds - parts[RESIDENT],
        "first_token_seconds": fed - opened,
        "parts": parts,
    }


def _help_seconds() -> float:
    code = "from flashmoe.cli import main; main()"
    begin = perf_counter()
    subprocess.run([sys.executable, "-c", code, "--help"], stdout=subprocess.DEVNULL, check=True)
    return perf_counter() - begin
