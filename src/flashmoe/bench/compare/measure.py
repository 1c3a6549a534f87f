"""The comparison: rows of interleaved pairs, then ratios."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from flashmoe.bench.compare.child import Progress, peer_program
from flashmoe.bench.compare.engines import (
    CONTEXT_LENGTH,
    Engine,
    make_request,
    our_engine,
    our_settings,
    peer_engine,
)
from flashmoe.bench.compare.forecast import Forecast
from flashmoe.bench.compare.instructions import lacking_instructions, processor_flags
from flashmoe.bench.compare.journal import NAME, Facts, Journal, circumstances
from flashmoe.bench.compare.models import ROUTING_TOKENS, Twins, make_twins
from flashmoe.bench.compare.read_ahead import (
    USUAL_READ_AHEAD_KB,
    found_read_ahead,
    read_ahead_file,
)
from flashmoe.bench.compare.rows import ROWS, Row, Run, bound_figures, ratio_figures
from flashmoe.bench.compare.surroundings import alone, limit_bytes, terminate_as_interrupt
from flashmoe.bench.compare.trials import USUAL, Settings, Trials
from flashmoe.bench.decode import touched_bytes
from flashmoe.bench.rates import RateMeter, around_runs
from flashmoe.bench.stretch import random_ids
from flashmoe.errors import UsageError
from flashmoe.experts.memory import read_system_memory
from flashmoe.ops.threads import default_threads
from flashmoe.store.packed import PackedModel

# The bound is measured where the cache misses most.
_BOUND_ROW: Final = "decode_25"
_DEPTHS: Final = (4, 8, 16)

Samples = list[tuple[float, float]]
"""Disk and memory in bytes per second, at each depth."""


@dataclass(frozen=True)
class CompareOptions:
    """rows: which. peer_python: interpreter that has the extra's packages. resume: go on where
    commands on this machine with this program were ended, and put their pairs together."""

    folder: Path
    shape: str
    layers: int | None
    pairs: int
    peer_python: str
    rows: Sequence[Row] = ROWS
    seed: int = 0
    resume: bool = False
    threads: int = field(default_factory=default_threads)

    def __post_init__(self) -> None:
        for name in ("threads", "pairs"):
            if getattr(self, name) < 1:
                raise UsageError("must be at least 1", where=f"--{name}", got=getattr(self, name))


def measure_comparison(
    options: CompareOptions, progress: Progress, announce: Progress = lambda text: None
) -> dict[str, Any]:
    """The figures of `flashmoe bench compare`: a key per row, "bound_fraction" and "details".

    announce: called before each trial and pair with what comes and when the end is expected.
    """
    with terminate_as_interrupt(), alone(options.folder):
        peer = peer_program(options.peer_python)
        twins = make_twins(options.folder, options.shape, options.layers, peer, progress)
        _check_memory(twins)
        ours = our_engine(twins.pack, twins.pack_files, options.threads)
        theirs = peer_engine(peer, twins.gguf, options.threads)
        return _Comparison(options, twins, ours, theirs, progress, announce).figures()


def _check_memory(twins: Twins) -> None:
    """The peer's trials need its model in memory, once in the page cache and once repacked."""
    available, needed = read_system_memory().available, max(twins.sizes.values())
    if available < 2 * needed:
        raise UsageError(
            "the models are too large for this machine's memory",
            where="--layers",
            expected=f"at most half of {available} bytes",
            got=needed,
        )


class _Comparison:
    def __init__(
        self,
        options: CompareOptions,
        twins: Twins,
        ours: Engine,
        theirs: Engine,
        progress: Progress,
        announce: Progress,
    ) -> None:
        self._options, self._twins = options, twins
        self._progress, self._announce = progress, announce
        self._ours, self._theirs = ours, theirs
        self._pack = PackedModel.open(twins.pack)
        self._trials = Trials(self._try_out)
        self._show = ""
        self._notes: list[str] = []
        facts = circumstances(
            options.folder,
            threads=options.threads,
            peer=options.peer_python,
            models=[twins.pack.name, twins.sizes],
        )
        self._journal = Journal(options.folder / NAME, facts, options.resume)
        self._forecast = Forecast(self._jobs())
        self._meters = [
            RateMeter(
                files=self._pack.files,
                record_bytes=self._pack.manifest.experts.record_bytes,
                readers=depth,
                threads=options.threads,
            )
            for depth in _DEPTHS
        ]

    def figures(self) -> dict[str, Any]:
        self._notes.append(found_read_ahead(read_ahead_file(self._twins.gguf)))
        peer = self._routing()
        self._notes += lacking_instructions(peer["cpu"], processor_flags())
        pairs = {row.name: self._pairs(row) for row in self._options.rows}
        figures: dict[str, Any] = {name: ratio_figures(runs) for name, runs in pairs.items()}
        if _BOUND_ROW in pairs:
            figures["bound_fraction"] = self._bound([ours for ours, _ in pairs[_BOUND_ROW]])
        return {**figures, "details": self._details(pairs, peer)}

    def _jobs(self) -> list[str]:
        """Trials by kind and pairs by row."""
        rows = self._options.rows
        trials = [kind for kind in {row.kind for row in rows} for _ in range(Trials.count(kind))]
        return trials + [row.name for row in rows for _ in range(self._options.pairs)]

    def _job(self, job: str, what: Facts, measure: Callable[[], Facts]) -> Facts:
        """Measured and written down, unless an earlier command did."""
        found = self._journal.find(what)
        if found is not None:
            self._forecast.skip(job)
            return found
        self._announce(f"{self._show}the end is expected in {self._forecast.minutes:.0f} minutes")
        start = perf_counter()
        value = self._journal.add(what, measure())
        self._forecast.done(job, perf_counter() - start)
        return value

    def _pairs(self, row: Row) -> list[tuple[Run, Run]]:
        """Pairs of runs on the same tokens. A pair is kept whole: its runs were neighbours."""
        settings, pairs = self._trials.best(row), []
        for number in range(self._options.pairs):
            self._show = f"{row.name}, pair {number + 1} of {self._options.pairs}: "
            seed = self._options.seed + number
            what = {"pair": vars(row), "seed": seed, "peer_settings": settings}
            pair = self._job(row.name, what, partial(self._pair, row, number, settings))
            for samples in pair["rates"]:
                for meter, (disk, memory) in zip(self._meters, samples, strict=True):
                    meter.rates.add(disk, memory)
            pairs.append((pair["flashmoe"], pair["peer"]))
        return pairs

    def _pair(self, row: Row, number: int, settings: Settings) -> Facts:
        """Two runs, who comes first alternates; rates of disk and memory around ours, where they
        are used."""
        rates: list[Samples] = []
        seed = self._options.seed + number
        runs = {
            "flashmoe": lambda: self._between(
                rates, row, lambda: self._run(self._ours, row, seed, our_settings(row))
            ),
            "peer": lambda: self._run(self._theirs, row, seed, settings),
        }
        order = list(runs) if number % 2 == 0 else list(reversed(runs))
        return {**{name: runs[name]() for name in order}, "rates": rates}

    def _between(self, rates: list[Samples], row: Row, run: Callable[[], Run]) -> Run:
        """A run with rates taken right before and after it."""
        if row.name != _BOUND_ROW:
            return run()
        rates.append(self._sample())
        result = run()
        rates.append(self._sample())
        return result

    def _sample(self) -> Samples:
        self._progress("measuring disk and memory")
        return [meter.measure() for meter in self._meters]

    def _run(self, engine: Engine, row: Row, seed: int, settings: Settings) -> Run:
        request = make_request(row, settings, self._twins.config["vocab_size"], seed)
        load = os.getloadavg()[0]
        run = engine.run(row, request, self._limit(row), self._say)
        return {**run, "load_before": load}

    def _try_out(self, row: Row, settings: Settings) -> Run:
        self._show = f"trying {settings}: "
        what = {"trial": vars(row), "settings": settings, "seed": self._options.seed}
        seed = self._options.seed
        return self._job(row.kind, what, lambda: self._run(self._theirs, row, seed, settings))

    def _say(self, text: str) -> None:
        self._progress(self._show + text)

    def _limit(self, row: Row) -> int | None:
        """Of the larger file, so that neither engine gets less than the share of its own."""
        if row.share is None:
            return None
        return limit_bytes(row.share, max(self._twins.sizes.values()))

    def _routing(self) -> dict[str, Any]:
        """Experts that each layer of the twin uses in llama.cpp, and how that was built."""
        config = self._twins.config
        request = {
            "model": str(self._twins.gguf),
            "threads": self._options.threads,
            "context_length": CONTEXT_LENGTH,
            "settings": USUAL,
            "experts_per_token": config["num_experts_per_tok"],
            "ids": random_ids(config["vocab_size"], ROUTING_TOKENS, self._options.seed),
        }
        self._progress("llama.cpp: does routing spread?")
        return self._theirs.program.call("routing", request, self._progress)

    def _bound(self, runs: Sequence[Run]) -> dict[str, Any]:
        """At the depth where the disk was fastest."""
        meter = max(self._meters, key=lambda meter: median(meter.rates.disk))
        touched = touched_bytes(self._pack, self._twins.config["num_experts_per_tok"])
        around = zip(around_runs(meter.rates.disk), around_runs(meter.rates.memory), strict=True)
        figures = bound_figures(runs, touched, list(around))
        return figures | {"block_bytes": meter.record_bytes, "depth": meter.readers}

    def _details(
        self, pairs: dict[str, list[tuple[Run, Run]]], peer: dict[str, Any]
    ) -> dict[str, Any]:
        """What the ratios rest on. peer: from _routing."""
        return {
            "notes": [*self._notes, *self._assembly()],
            "commands": sorted(self._journal.sessions),
            "peer_build": {"version": peer["version"], "cpu": peer["cpu"]},
            "twins": {
                "pack": self._twins.pack.name,
                "gguf": self._twins.gguf.name,
                "bytes": self._twins.sizes,
            },
            "rows": [self._row_details(row, pairs[row.name]) for row in self._options.rows],
            "peer_trials": self._trials.rows(),
            "peer_read_ahead_kb": self._read_ahead_kb(),
            "peer_routing": {"tokens": ROUTING_TOKENS, "distinct_experts": peer["distinct"]},
            "rates": [
                meter.rates.row() | {"depth": meter.readers}
                for meter in self._meters
                if meter.rates.disk
            ],
        }

    def _assembly(self) -> list[str]:
        """A note if not all was measured by this command."""
        commands = sorted(self._journal.sessions)
        if commands == [self._journal.session]:
            return []
        began = ", ".join(commands)
        return [f"put together from commands begun at {began}: same machine, same program"]

    def _row_details(self, row: Row, pairs: list[tuple[Run, Run]]) -> dict[str, Any]:
        return {
            "row": row.name,
            "start": "warm" if row.in_memory else "cold: files dropped by posix_fadvise",
            "limit_bytes": self._limit(row),
            "warm_up_tokens": row.warm_up,
            "runs": [{"flashmoe": own, "peer": peer} for own, peer in pairs],
        }

    def _read_ahead_kb(self) -> int | None:
        """What it was set to; None: it could not be set, so the disk's own was in force."""
        return USUAL_READ_AHEAD_KB if read_ahead_file(self._twins.gguf) else None
