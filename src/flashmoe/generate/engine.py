"""A loaded model at work: forward passes over batches, and sessions that feed one sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

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
    closed: bool = False

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
        return self.decoder.new_state(self.context_length, self.kv_dtype, self.ops.state)

    def last_logits(self, batch: Batch, times: PhaseTimes) -> Floats:
        """Run a batch -> logits [vocab_size] after its last token.

        times: where to book the pass, `prefill` or `decode`.
        """
        logits: Floats = self._run(batch, slice(-1, None), times)[0]
        return logits

    def all_logits(self, batch: Batch, times: PhaseTimes) -> Floats:
        """Run a batch -> logits [T, vocab_size] after each token. times: as above."""
        return self._run(batch, slice(None), times)

    def close(self) -> None:
        """Let the weights go; sessions refuse to work from now on."""
        self.closed = True
        del self.decoder

    def _run(self, batch: Batch, rows: slice, times: PhaseTimes) -> Floats:
        start = perf_counter()
        self.ops.begin_pass()
        try:
            h = self.decoder.forward(batch, self.experts, self.ops)
        finally:
            self.experts.end_step()
        logits = self.decoder.logits(h[rows], self.ops)
        check_finite(logits)
        times.book(len(batch.ids), perf_counter() - start, self.ops.clock.take())
        return logits


def check_finite(logits: Floats) -> None:
    """Raises NumericError if a logit is NaN or infinite."""
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

        Raises UsageError for no ids, ids outside the vocabulary or a closed model,
        ContextLengthError past the context. After an error or interrupt midway the session is dead
        and says so.
        """
        return self._run(ids, self.engine.prefill)

    def step(self, id: int) -> Floats:
        """feed([id]), counted as a decode step and not as a prompt.

        On a card, the result is written over by the session's next step."""
        return self._run([id], self.engine.decode)

    def _run(self, ids: Sequence[int], times: PhaseTimes) -> Floats:
        tokens = self._checked(ids)
        self._broken = True  # until every chunk went through: the states of layers must agree
        for begin in range(0, len(tokens), self.engine.prefill_chunk):
            chunk = tokens[begin : begin + self.engine.prefill_chunk]
            logits = self.engine.last_logits(Batch.single(self._state, chunk), times)
        self._broken = False
        return logits

    def feed_all(self, ids: Sequence[int], chunk: int | None = None) -> Floats:
        """Like feed -> logits float32 [T, vocab_size] after each token; chunk: tokens per pass."""
        tokens = self._checked(ids)
        size = chunk or self.engine.prefill_chunk
        chunks = [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]
        self._broken = True
        engine, state = self.engine, self._state
        parts = [engine.all_logits(Batch.single(state, part), engine.prefill) for part in chunks]
        self._broken = False
        return np.concatenate(parts)

    def _checked(self, ids: Sequence[int]) -> Ints:
        if self.engine.closed:
            raise UsageError("the model is closed", where="session")
        if self._broken:
            raise UsageError(
                "it ended with an error and cannot go on", where="session", hint="Start a new one."
            )
        tokens = _token_ids(ids, self.engine.vocab_size)
        if self.position + tokens.size > self.context_length:
            raise ContextLengthError(
                "the tokens do not fit the context",
                where="context_length",
                expected=f"at most {self.context_length} tokens",
                got=self.position + tokens.size,
                hint="Shorten the prompt or raise --ctx.",
            )
        return tokens


def _token_ids(ids: Sequence[int], vocab_size: int) -> Ints:
    if len(ids) == 0:
        raise UsageError("no tokens to run", where="prompt", hint="Give at least one token.")
    for index, id in enumerate(ids):
        if not isinstance(id, Integral) or not 0 <= id < vocab_size:
            raise UsageError(
                "token id outside the vocabulary",
                where=f"prompt[{index}]",
                expected=f"an integer from 0 to {vocab_size - 1}",
                got=repr(id),
            )
    return np.array(ids, dtype=np.int32)
