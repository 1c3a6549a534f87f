"""Prefill speed and time to the first token for prompts of several lengths.

Token ids are random but seeded. Cold: every run is a new process with an empty expert cache, on
files that the page cache does not hold. Warm: one model per length, after a prompt of the same
length that does not count; every run is a sequence of its own with other ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import flashmoe
from flashmoe.bench.apart import Progress, run_cold
from flashmoe.bench.record import Start
from flashmoe.bench.stretch import Stretch, random_ids, spread, stretch
from flashmoe.errors import UsageError
from flashmoe.generate.progress import PromptMeter

if TYPE_CHECKING:
    from flashmoe.stats import Stats


@dataclass(frozen=True)
class PrefillOptions:
    """lengths: of prompts, in tokens. engine: settings of flashmoe.load."""

    lengths: Sequence[int] = (512, 2048, 8192)
    repeat: int = 1
    start: Start = "cold"
    seed: int = 0
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise UsageError("not lengths of prompts", where="--tokens", got=self.lengths)
        if self.repeat < 1:
            raise UsageError("must be at least 1", where="--repeat", got=self.repeat)

    def load(self, path: Path, length: int) -> flashmoe.Model:
        """The model with room for a prompt and the token that is sampled after it."""
        return flashmoe.load(path, **{"context_length": length + 1, **self.engine})


@dataclass(frozen=True)
class _Run:
    """chunk: tokens per pass of the engine."""

    measured: Stretch
    stats: Stats
    chunk: int


def measure_prefill(path: Path, options: PrefillOptions, progress: Progress) -> dict[str, Any]:
    """The figures of `flashmoe bench prefill`; see docs/benchmarks.md."""
    prompts = [_measure_length(path, length, options, progress) for length in options.lengths]
    return {"prompts": prompts}


def _measure_length(
    path: Path, length: int, options: PrefillOptions, progress: Progress
) -> dict[str, Any]:
    numbers = range(options.repeat)
    if options.start == "warm":
        runs = _runs_of_one_model(path, length, options, numbers, progress)
    else:
        each = [(length, options, range(n, n + 1)) for n in numbers]
        runs = [
            run
            for arguments in each
            for run in run_cold(path, _runs_of_one_model, arguments, progress)
        ]
    return _figures(length, runs)


def _figures(length: int, runs: Sequence[_Run]) -> dict[str, Any]:
    measured, stats = [run.measured for run in runs], runs[-1].stats
    return {
        "prompt_tokens": length,
        "tokens_per_second": spread([run.tokens_per_second for run in measured]),
        "time_to_first_token": median([run.seconds for run in measured]),
        "prefill_chunk": runs[-1].chunk,
        "cache_bytes": stats.cache_bytes,
        "direct_io": stats.direct_io,
        "peak_rss": stats.peak_rss,
        "runs": [run.row() for run in measured],
    }


def _runs_of_one_model(
    path: Path, length: int, options: PrefillOptions, numbers: range, progress: Progress
) -> list[_Run]:
    runs, warm = [], options.start == "warm"
    progress("loading the model")
    with options.load(path, length) as model:
        if warm:
            _run(model, length, options.seed, _meter(progress, "warming up: "))
        for number in numbers:
            what = f"prompt of {length} tokens, run {number + 1} of {options.repeat}: "
            measured = _run(model, length, options.seed + number + warm, _meter(progress, what))
            chunk = model.session().engine.memory.chunk(length)
            runs.append(_Run(measured, model.stats, chunk))
    return runs


def _meter(progress: Progress, what: str) -> PromptMeter:
    return PromptMeter(lambda text: progress(what + text))


def _run(model: flashmoe.Model, length: int, seed: int, meter: PromptMeter) -> Stretch:
    """From token ids to the first token of the answer, sampled greedily."""
    session = model.session()
    ids = random_ids(session.engine.vocab_size, length, seed)
    meter(0, length)
    with stretch(model, length) as measured:
        int(np.argmax(session.feed(ids, lambda done: meter(done, length))))
    return measured
