"""A loaded model at work: forward passes over batches, and sessions that feed one sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flashmoe.errors import ContextLengthError, NumericError, UsageError
from flashmoe.layers.moe import RoutedExperts
from flashmoe.layers.state import Batch, SequenceState
from flashmoe.models.decoder import Decoder
from flashmoe.ops.base import Floats, Ints, Ops


class StepExperts(RoutedExperts, Protocol):
    """Routed experts that are told when a forward pass is over."""

    def end_step(self) -> None:
        """The pass is over: what must not outlive it is dropped."""


@dataclass
class PhaseTimes:
    """Tokens, seconds and phases of all prefill or all decode passes so far."""

    tokens: int = 0
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def book(self, tokens: int, seconds: float, phases: dict[str, float]) -> None:
        """Add one pass; what no kernel reported is Python's own share."""
        self.tokens += tokens
        for name, value in phases.items():
            self.add(name, value)
        self.add("python", max(0.0, seconds - sum(phases.values())))

    def add(self, phase: str, seconds: float) -> None:
        """Add time under one phase."""
        self.seconds += seconds
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds


@dataclass
class Engine:
    """Decoder, experts and kernels of one model. Used by one thread at a time."""

    decoder: Decoder
    experts: StepExperts
    ops: Ops
    context_length: int
    prefill_chunk: int
    vocab_size: int
    kv_dtype: DTypeLike
    prefill: PhaseTimes = field(default_factory=PhaseTimes)
    decode: PhaseTimes = field(default_factory=PhaseTimes)

    @contextmanager
    def between_steps(self, phase: str) -> Iterator[None]:
        """Book the time of the body, between two decode steps, under a phase ("sampling")."""
        start = perf_counter()
        try:
            yield
        finally:
            self.decode.add(phase, perf_counter() - start)

    def new_state(self) -> SequenceState:
        """An empty sequence."""
        return self.decoder.new_state(self.context_length, self.kv_dtype)

    def last_logits(self, batch: Batch) -> Floats:
        """Run a batch -> logits [vocab_size] after its last token; a copy."""
        logits: Floats = self._run(batch, slice(-1, None))[0]
        return logits

    def all_logits(self, batch: Batch) -> Floats:
        """Run a batch -> logits [T, vocab_size] after each token; a copy."""
        return self._run(batch, slice(None))

    def _run(self, batch: Batch, rows: slice) -> Floats:
        start = perf_counter()
        self.ops.clock.take()
        try:
            h = self.decoder.forward(batch, self.experts, self.ops)
        finally:
            self.experts.end_step()
        logits = self.decoder.logits(h[rows], self.ops).copy()
        _check_finite(logits)
        times = self.decode if len(batch.ids) == len(batch.segments) else self.prefill
        times.book(len(batch.ids), perf_counter() - start, self.ops.clock.take())
        return logits


def _check_finite(logits: Floats) -> None:
    # The sum is finite only if every term is: one pass without a temporary.
    if not np.isfinite(np.sum(logits, dtype=np.float64)):
        raise NumericError(
            "the model's output is not finite",
            where="logits",
            hint="Run `flashmoe verify` on the model; a NaN in its weights does this.",
        )


class Session:
    """One growing sequence on an engine: feed tokens, get logits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._state = engine.new_state()
        self._broken = False

    @property
    def position(self) -> int:
        """Number of tokens fed so far."""
        return self._state.position

    @property
    def context_length(self) -> int:
        """Number of tokens that fit."""
        return self._state.context_length

    def feed(self, ids: Sequence[int]) -> Floats:
        """Run ids after what was fed before -> logits float32 [vocab_size] after the last one.

        Raises UsageError for no ids or ids outside the vocabulary, ContextLengthError past the
        context. After an error or interrupt midway the session is dead and says so.
        """
        tokens = self._checked(ids)
        self._broken = True  # until every chunk went through: the states of layers must agree
        for begin in range(0, len(tokens), self.engine.prefill_chunk):
            chunk = tokens[begin : begin + self.engine.prefill_chunk]
            logits = self.engine.last_logits(Batch.single(self._state, chunk))
        self._broken = False
        return logits

    def feed_all(self, ids: Sequence[int], chunk: int | None = None) -> Floats:
        """Like feed -> logits float32 [T, vocab_size] after each token; chunk: tokens per pass."""
        tokens = self._checked(ids)
        size = chunk or self.engine.prefill_chunk
        self._broken = True
        parts = [
            self.engine.all_logits(Batch.single(self._state, tokens[begin : begin + size]))
            for begin in range(0, len(tokens), size)
        ]
        self._broken = False
        return np.concatenate(parts)

    def _checked(self, ids: Sequence[int]) -> Ints:
        if self._broken:
            raise UsageError("the session ended with an error", hint="Start a new one.")
        tokens: NDArray[np.int64] = np.asarray(ids, dtype=np.int64).reshape(-1)
        if tokens.size == 0:
            raise UsageError("no tokens to run", where="prompt", hint="Give at least one token.")
        wrong = tokens[(tokens < 0) | (tokens >= self.engine.vocab_size)]
        if wrong.size:
            raise UsageError(
                "token id outside the vocabulary",
                where="prompt",
                expected=f"0..{self.engine.vocab_size - 1}",
                got=int(wrong[0]),
            )
        if self.position + tokens.size > self.context_length:
            raise ContextLengthError(
                "the tokens do not fit the context",
                where="context_length",
                expected=f"at most {self.context_length} tokens",
                got=self.position + tokens.size,
                hint="Shorten the prompt or raise --ctx.",
            )
        return tokens.astype(np.int32)
