"""Several answers at once: their tokens per second together, and how long each waits for the next.

Token ids are forced, random but seeded, as in `bench decode`; every stream has its own. One model
per number of streams, so that the expert cache has what their states leave of the memory. A window
begins when all answer, after tokens that do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import flashmoe
from flashmoe.bench.apart import Progress
from flashmoe.bench.stretch import random_ids
from flashmoe.demo import demo_model_path
from flashmoe.errors import UsageError
from flashmoe.generate.request import Event, Failed, Generated, GenerationRequest
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.generate.scheduler import Scheduler
from flashmoe.text.tokenizer import Tokenizer

_WARM_UP_TOKENS = 24


@dataclass(frozen=True)
class ConcurrencyOptions:
    """streams: how many at once, one measurement each. tokens: of each stream in a window.
    long_prompt: tokens of a prompt that comes in beside the running streams; 0: none.
    engine: settings of flashmoe.load."""

    streams: Sequence[int] = (1, 8)
    tokens: int = 48
    prompt_tokens: int = 16
    long_prompt: int = 0
    seed: int = 0
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.streams or min(self.streams) < 1:
            raise UsageError("not numbers of streams", where="--streams", got=self.streams)
        for name in ("tokens", "prompt_tokens"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UsageError("must be at least 1", where=option, got=getattr(self, name))
        if self.long_prompt < 0:
            expected = "at least 1, or 0 for none"
            raise UsageError(
                "wrong value", where="--long-prompt", expected=expected, got=self.long_prompt
            )


class ForcedIds:
    """flashmoe.generate.request.TokenMask that allows one token at a time."""

    def __init__(self, ids: Iterator[int]) -> None:
        self._ids = ids

    def active(self) -> bool:
        return True

    def apply(self, logits: NDArray[np.float32]) -> None:
        id = next(self._ids)
        kept = logits[id]
        logits[:] = -np.inf
        logits[id] = kept

    def accept(self, token: int) -> None:
        """It was the only one."""

    def finished(self) -> bool:
        return False


@dataclass
class Stream:
    """When the tokens of one request came."""

    times: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Generated):
            self.times.append(perf_counter())
        elif isinstance(event, Failed):
            raise event.error

    def gaps(self, begin: float) -> list[float]:
        """Between its tokens since `begin`, the first after the last one before it."""
        times = [t for t in self.times if t < begin][-1:] + [t for t in self.times if t >= begin]
        return np.diff(times).tolist()


def measure_concurrency(
    path: Path, options: ConcurrencyOptions, progress: Progress
) -> dict[str, Any]:
    """The figures of `flashmoe bench concurrency`; see docs/benchmarks.md."""
    return {"runs": [_run(path, n, options, progress) for n in options.streams]}


def _run(path: Path, streams: int, options: ConcurrencyOptions, progress: Progress) -> Any:
    progress(f"{streams} streams: loading the model")
    tokens = _WARM_UP_TOKENS + options.tokens
    length = max(options.prompt_tokens + tokens, options.long_prompt) + 1
    if options.long_prompt:  # the streams go on beside it
        length += options.long_prompt
    own = {"context_length": length, "parallel": streams + bool(options.long_prompt)}
    with flashmoe.load(path, **{**own, **options.engine}) as model:
        scheduler = model.scheduler(tokenizer=Tokenizer(demo_model_path()))
        listeners = [_start(scheduler, length, options, number) for number in range(streams)]
        progress(f"{streams} streams: warming up")
        _until(scheduler, listeners, _WARM_UP_TOKENS)
        progress(f"{streams} streams: measuring")
        figures = _window(model, scheduler, listeners, options.tokens)
        if options.long_prompt:
            progress(f"{streams} streams beside a prompt of {options.long_prompt} tokens")
            figures["beside"] = _beside(scheduler, listeners, length, options)
        scheduler.close()
    return figures


def _start(
    scheduler: Scheduler, length: int, options: ConcurrencyOptions, number: int, prompt: int = 0
) -> Stream:
    """A stream that goes on as long as the context does."""
    seed, stream = options.seed + 1000 * number, Stream()
    vocab = scheduler.engine.vocab_size
    ids = random_ids(vocab, prompt or options.prompt_tokens, seed)
    forced = ForcedIds(iter(random_ids(vocab, length, seed + 1)))
    sampling = SamplingOptions(max_tokens=length)
    scheduler.start(GenerationRequest(tuple(ids), sampling, forced), stream)
    return stream


def _until(scheduler: Scheduler, streams: Sequence[Stream], tokens: int) -> None:
    while any(len(stream.times) < tokens for stream in streams):
        scheduler.step()


def _window(
    model: flashmoe.Model, scheduler: Scheduler, streams: Sequence[Stream], tokens: int
) -> dict[str, Any]:
    before, start = model.stats, perf_counter()
    for _ in range(tokens):
        scheduler.step()
    seconds, after = perf_counter() - start, model.stats
    count = tokens * len(streams)
    hits = after.cache_hits - before.cache_hits
    misses = after.cache_misses - before.cache_misses
    return {
        "streams": len(streams),
        "tokens": count,
        "tokens_per_second": count / seconds,
        "hit_rate": hits / max(1, hits + misses),
        "experts_per_token": (hits + misses) / count,
        "bytes_read_per_token": (after.bytes_read - before.bytes_read) / count,
        "gap_seconds": _spread(streams, start),
        "cache_bytes": after.cache_bytes,
        "kv_bytes": after.kv_bytes,
        "peak_rss": after.peak_rss,
        "phase_seconds": {
            name: spent - before.phase_seconds.get(name, 0.0)
            for name, spent in after.phase_seconds.items()
        },
    }


def _beside(
    scheduler: Scheduler, streams: Sequence[Stream], length: int, options: ConcurrencyOptions
) -> dict[str, Any]:
    start = perf_counter()
    late = _start(scheduler, length, options, len(streams), prompt=options.long_prompt)
    _until(scheduler, [late], 1)
    return {
        "prompt_tokens": options.long_prompt,
        "prompt_seconds": late.times[0] - start,
        "tokens_meanwhile": sum(t >= start for stream in streams for t in stream.times),
        "gap_seconds": _spread(streams, start),
    }


def _spread(streams: Sequence[Stream], begin: float) -> dict[str, float]:
    gaps = [gap for stream in streams for gap in stream.gaps(begin)]
    if not gaps:
        return {}
    return {"median": float(np.median(gaps)), "max": max(gaps)}
