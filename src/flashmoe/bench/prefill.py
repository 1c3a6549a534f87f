"""Prefill speed for prompts of several lengths, each on a model opened anew with an empty expert
cache. Token ids are random but seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import flashmoe
from flashmoe.bench.decode import Progress
from flashmoe.bench.stretch import Stretch, random_ids, spread, stretch
from flashmoe.errors import UsageError


@dataclass(frozen=True)
class PrefillOptions:
    """lengths: of prompts, in tokens. engine: settings of flashmoe.load."""

    lengths: Sequence[int] = (512, 2048, 8192)
    repeat: int = 1
    seed: int = 0
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise UsageError("not lengths of prompts", where="--tokens", got=self.lengths)
        if self.repeat < 1:
            raise UsageError("must be at least 1", where="--repeat", got=self.repeat)


def measure_prefill(path: Path, options: PrefillOptions, progress: Progress) -> dict[str, Any]:
    """The figures of `flashmoe bench prefill`; see docs/benchmarks.md."""
    prompts = [_measure_length(path, length, options, progress) for length in options.lengths]
    return {"prompts": prompts}


def _measure_length(
    path: Path, length: int, options: PrefillOptions, progress: Progress
) -> dict[str, Any]:
    runs: list[Stretch] = []
    for number in range(options.repeat):
        progress(f"prompt of {length} tokens, run {number + 1} of {options.repeat}")
        # One token of context beyond the prompt: the one that is sampled.
        own = {"context_length": length + 1}
        with flashmoe.load(path, **{**own, **options.engine}) as model:
            runs.append(_run(model, length, options.seed + number))
            stats = model.stats
            chunk = model.session().engine.memory.chunk(length)
    return {
        "prompt_tokens": length,
        "tokens_per_second": spread([run.tokens_per_second for run in runs]),
        "time_to_first_token": median([run.seconds for run in runs]),
        "prefill_chunk": chunk,
        "cache_bytes": stats.cache_bytes,
        "direct_io": stats.direct_io,
        "peak_rss": stats.peak_rss,
        "runs": [run.row() for run in runs],
    }


def _run(model: flashmoe.Model, length: int, seed: int) -> Stretch:
    """From token ids to the first token of the answer, sampled greedily."""
    session = model.session()
    ids = random_ids(session.engine.vocab_size, length, seed)
    with stretch(model, session, length) as measured:
        int(np.argmax(session.feed(ids)))
    return measured
