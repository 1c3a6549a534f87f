"""A loaded model at work: forward passes over batches, and sessions that feed one sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.errors import ContextLengthError, NumericError, UsageError
from flashmoe.layers.moe import RoutedExperts
from flashmoe.layers.state import Batch, SequenceState
from flashmoe.models.decoder import Decoder, OnLayer
from flashmoe.ops.base import Floats, Ints, Ops
from flashmoe.ops.parts import CHUNK_STEP

TokensDone = Callable[[int], None]
Watch = Callable[[Batch], AbstractContextManager[None]]


class StepExperts(RoutedExperts, Protocol):
    """Routed experts that are told when a forward pass is over."""

    def end_step(self) -> None:
        """The pass is over: what must not outlive it is dropped."""


class Prefixes(Protocol):
    """Where beginnings of sequences are kept (generate.prefix.PrefixCache)."""

    def restore(self, ids: Sequence[int], state: SequenceState) -> int:
        """Bring an empty state as far as is known of ids, short of the last -> tokens."""

    def limit(self, position: int, tokens: int, prompt_tokens: int) -> int:
        """How many of the next `tokens` of a prompt to run, so that its state can be kept."""

    def keep(self, ids: Sequence[int], state: SequenceState, prompt: bool) -> None:
        """Keep what is new of ids; prompt: all of it was run as a prompt."""


class StepMemory(Protocol):
    """Who keeps the memory of passes."""

    def chunk(self, tokens: int) -> int:
        """Tokens per pass for a prompt of so many: a multiple of 64."""

    def sweep_chunk(self, tokens: int) -> int:
        """Tokens per pass over a single layer, for so many tokens: a multiple of 64."""

    def prompt(self, chunk: int) -> AbstractContextManager[None]:
        """While the body runs there is room for passes over `chunk` tokens."""

    def after_pass(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens took so long."""


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


def _unwatched(batch: Batch) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Engine:
    """Decoder, experts and kernels of one model. Used by one thread at a time.

    watch: entered around the layers of each pass.
    """

    decoder: Decoder
    experts: StepExperts
    ops: Ops
    memory: StepMemory
    context_length: int
    vocab_size: int
    kv_dtype: DTypeLike
    lossy: str = ""  # what makes results not the model's own
    watch: Watch = _unwatched
    prefill: PhaseTimes = field(default_factory=PhaseTimes)
    decode: PhaseTimes = field(default_factory=PhaseTimes)
    closed: bool = False
    _inner_seconds: float = 0.0

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

    def last_logits(
        self,
        batch: Batch,
        times: PhaseTimes,
        out: Floats | None = None,
        on_layer: OnLayer | None = None,
    ) -> Floats:
        """Run a batch -> logits [vocab_size] after its last token.

        times: where to book the pass, `prefill` or `decode`. out [1, vocab_size]: where to write.
        """
        logits: Floats = self._run(batch, slice(-1, None), times, out, on_layer)[0]
        return logits

    def all_logits(self, batch: Batch, times: PhaseTimes) -> Floats:
        """Run a batch -> logits [T, vocab_size] after each token. times: as above."""
        return self._run(batch, slice(None), times)

    def hidden(self, batch: Batch, times: PhaseTimes, on_layer: OnLayer | None = None) -> Floats:
        """Run a batch -> [T, H] before the final norm, until the next pass.

        on_layer may run another pass over fewer tokens, of other sequences: between two layers a
        pass holds nothing but its hidden states. Each is booked for itself.
        """
        around, self._inner_seconds = self._inner_seconds, 0.0
        start, held = perf_counter(), self.ops.clock.take()
        self.ops.begin_pass()
        try:
            with self.watch(batch):
                return self.decoder.forward(batch, self.experts, self.ops, on_layer)
        finally:
            self.experts.end_step()
            seconds = perf_counter() - start
            own, self._inner_seconds = seconds - self._inner_seconds, around + seconds
            times.book(len(batch.ids), own, self.ops.clock.take())
            for phase, spent in held.items():
                self.ops.clock.add(spent, phase)
            self.memory.after_pass(len(batch.ids), own)

    def logits_of(self, h: Floats, times: PhaseTimes, out: Floats) -> Floats:
        """h [n, H] of `hidden` -> logits [n, vocab_size] in `out`; not checked."""
        start = perf_counter()
        logits = self.decoder.logits(h, self.ops, out)
        times.add("head", perf_counter() - start)
        return logits

    def close(self) -> None:
        """Let the weights go; sessions refuse to work from now on."""
        self.closed = True
        del self.decoder
        self.ops.release()

    def _run(
        self,
        batch: Batch,
        rows: slice,
        times: PhaseTimes,
        out: Floats | None = None,
        on_layer: OnLayer | None = None,
    ) -> Floats:
        start = perf_counter()
        self.ops.begin_pass()
        try:
            with self.watch(batch):
                h = self.decoder.forward(batch, self.experts, self.ops, on_layer)
        finally:
            self.experts.end_step()
        if len(h) > 1:
            h = h[rows]
        logits = self.decoder.logits(h, self.ops, out)
        check_finite(logits, self.ops)
        seconds = perf_counter() - start
        times.book(len(batch.ids), seconds, self.ops.clock.take())
        self.memory.after_pass(len(batch.ids), seconds)
        return logits


def check_finite(logits: Floats, ops: Ops) -> None:
    """Raises NumericError if a logit is NaN or infinite."""
    if not ops.all_finite(logits):
        raise NumericError(
            "the model's output is not finite",
            where="logits",
            hint="Run `flashmoe verify` on the model; a NaN in its weights does this.",
        )


def cuts(position: int, tokens: int, chunk: int) -> list[slice]:
    """Cut tokens at positions position... into passes of at most `chunk`.

    Where a chunk is a multiple of 64 so are the positions of the cuts: the result does not depend
    on which chunk was chosen.
    """
    if tokens <= chunk:
        return [slice(0, tokens)]
    first = chunk - (position % CHUNK_STEP if chunk % CHUNK_STEP == 0 else 0)
    edges = [0, *range(first, tokens, chunk), tokens]
    return [slice(begin, end) for begin, end in pairwise(edges)]


class Session:
    """One growing sequence on an engine: feed tokens, get logits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._state = engine.new_state()
        self._step_logits = np.empty((1, engine.vocab_size), dtype=np.float32)
        self._broken = False

    @property
    def position(self) -> int:
        """Number of tokens fed so far."""
        return self._state.position

    @property
    def context_length(self) -> int:
        """Number of tokens that fit."""
        return self._state.context_length

    def feed(self, ids: Sequence[int], on_progress: TokensDone | None = None) -> Floats:
        """Run ids after what was fed before -> logits float32 [vocab_size] after the last one.

        on_progress: called after each layer with the tokens done; of a chunk that is under way,
        as many as the share of layers that it has passed.

        Raises UsageError for no ids, ids outside the vocabulary or a closed model,
        ContextLengthError past the context. After an error or interrupt midway the session is dead
        and says so.
        """
        tokens = self._checked(ids)
        chunk = self.engine.memory.chunk(len(tokens))
        with self.engine.memory.prompt(chunk):
            for part in cuts(self.position, len(tokens), chunk):
                on_layer = _layer_watch(on_progress, part)
                logits = self._pass(tokens[part], self.engine.prefill, on_layer=on_layer)
        return logits

    def step(self, id: int) -> Floats:
        """feed([id]), counted as a decode step and not as a prompt.

        The result is written over by the session's next step."""
        tokens = self._checked([id])
        return self._pass(tokens, self.engine.decode, self._step_logits)

    def rewind(self, position: int) -> int:
        """Forget all but the first `position` tokens -> how many are kept: so many, or none.

        Keys and values of earlier tokens are still there; of a delta rule's state, and of a window
        that has moved on, they are not, and then the sequence is empty again. What is kept is, bit
        for bit, as if the rest had never been fed. A session that ended with an error can go on
        after this. Raises UsageError for more tokens than were fed.
        """
        if not 0 <= position <= self.position:
            raise UsageError(
                "cannot go forward", where="rewind", expected=f"0 to {self.position}", got=position
            )
        reached = self.context_length if self._broken else self.position
        self._state.rewind(position, reached)
        self._broken = False
        return self.position

    def restore(self, ids: Sequence[int], prefixes: Prefixes) -> int:
        """Bring an empty session as far as is kept of ids, short of the last -> tokens."""
        return prefixes.restore(ids, self._state)

    def keep(self, ids: Sequence[int], prefixes: Prefixes) -> None:
        """Keep the state after ids[: position], all of which was fed as a prompt."""
        prefixes.keep(ids, self._state, prompt=True)

    def _pass(
        self,
        tokens: Ints,
        times: PhaseTimes,
        out: Floats | None = None,
        on_layer: OnLayer | None = None,
    ) -> Floats:
        self._broken = True  # until all layers went through: their states must agree
        batch = Batch.single(self._state, tokens)
        logits = self.engine.last_logits(batch, times, out, on_layer)
        self._broken = False
        return logits

    def feed_all(self, ids: Sequence[int], chunk: int | None = None) -> Floats:
        """Like feed -> logits float32 [T, vocab_size] after each token; chunk: tokens per pass."""
        tokens = self._checked(ids)
        engine, state = self.engine, self._state
        size = chunk or engine.memory.chunk(len(tokens))
        self._broken = True
        with engine.memory.prompt(size):
            parts = [
                engine.all_logits(Batch.single(state, tokens[part]), engine.prefill)
                for part in cuts(self.position, len(tokens), size)
            ]
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


def _layer_watch(on_progress: TokensDone | None, part: slice) -> OnLayer | None:
    """Layers of the pass over tokens[part], told as tokens done."""
    if on_progress is None:
        return None
    begin, tokens = part.start, part.stop - part.start
    return lambda done, layers: on_progress(begin + tokens * done // layers)


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
