"""Several sequences on one engine: their next tokens and pieces of prompts go through the layers as
one batch, so that an expert is read once for all of them.

Beside running answers a prompt either shares their pass, where that is short, or it lets them pass
between two of its layers. A row's result does not depend on the other rows of its pass: every
answer is, bit for bit, that of its request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import ContextLengthError, FlashMoeError, UsageError
from flashmoe.generate.costs import Costs, Meter
from flashmoe.generate.engine import Engine, PhaseTimes, Prefixes, check_finite
from flashmoe.generate.passes import GAP_SECONDS, PassTimes, share_rows
from flashmoe.generate.request import GenerationRequest, OnEvent
from flashmoe.generate.sequence import RunningSequence
from flashmoe.layers.state import Batch, Segment, SequenceState
from flashmoe.ops.composed import HEAD_ROWS
from flashmoe.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]


class _Abandoned(Exception):
    """Nobody wants the pass under way any more."""


@dataclass(frozen=True)
class Part:
    """The next `tokens` of a sequence within a pass: of its prompt, or the one chosen last."""

    sequence: RunningSequence
    tokens: int
    prompt: bool


class Scheduler:
    """Runs up to `parallel` sequences. Used by one thread.

    costs: of all passes so far, without their seconds. gap: seconds between two tokens of an answer
    beside a prompt. between: called after each layer of a prompt, where cancellations may arrive.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        costs: Callable[[], Costs],
        parallel: int = 1,
        prefixes: Prefixes | None = None,
        gap: float = GAP_SECONDS,
    ) -> None:
        self.engine, self.parallel = engine, parallel
        self.running: list[RunningSequence] = []
        self.between: Callable[[], None] = lambda: None
        self._tokenizer, self._meter, self._prefixes = tokenizer, Meter(costs), prefixes
        self._gap, self._times = gap, PassTimes()
        self._states: list[SequenceState] = []
        self._logits = np.empty((max(parallel, HEAD_ROWS), engine.vocab_size), dtype=np.float32)
        self._room, self._chunk = ExitStack(), 0
        self._last_step = perf_counter()

    @property
    def full(self) -> bool:
        """Whether no further sequence may start."""
        return len(self.running) >= self.parallel

    def check(self, request: GenerationRequest) -> None:
        """Raises UsageError (no tokens, or unknown ones) or ContextLengthError. Any thread."""
        ids, context = request.prompt_ids, self.engine.context_length
        if not ids:
            raise UsageError("the prompt is empty", where="prompt")
        wrong = [id for id in ids if not 0 <= id < self.engine.vocab_size]
        if wrong:
            limit = f"0 to {self.engine.vocab_size - 1}"
            raise UsageError("not a token id", where="prompt", expected=limit, got=wrong[0])
        if len(ids) > context:
            raise ContextLengthError(
                "the prompt does not fit the context",
                where="prompt",
                expected=f"at most {context} tokens",
                got=len(ids),
                hint="Shorten it or raise the context length (--ctx).",
            )

    def start(
        self, request: GenerationRequest, on_event: OnEvent, queue_seconds: float = 0.0
    ) -> RunningSequence:
        """Take a checked request in; only where not `full`."""
        assert not self.full
        state = self._states.pop() if self._states else self.engine.new_state()
        state.reset()
        if self._prefixes is not None and request.prompt_logprobs is None:
            self._prefixes.restore(request.prompt_ids, state)
        told = on_event, queue_seconds, self.engine.lossy
        sequence = RunningSequence(request, state, self._tokenizer, *told)
        self.running.append(sequence)
        return sequence

    def step(self) -> None:
        """One pass over what runs; afterwards those that are over are gone from `running`."""
        self._drop_finished()
        prompts = [s for s in self.running if s.remaining]
        answers = [s for s in self.running if not s.remaining]
        if prompts:
            self._step_with_prompts(prompts, answers)
        else:
            self._return_room()
            self._decode(answers)
        self._drop_finished()

    def close(self) -> None:
        """Give back what was borrowed, let the states go."""
        self._return_room()
        self.running.clear()
        self._states.clear()

    # Which pass.

    def _step_with_prompts(
        self, prompts: list[RunningSequence], answers: list[RunningSequence]
    ) -> None:
        prompts.sort(key=lambda s: s.request.priority)
        rows = self._rows_for(sum(s.remaining for s in prompts), bool(answers))
        shares = share_rows([(s.state.position, s.remaining) for s in prompts], rows)
        shares = [self._limited(s, n) for s, n in zip(prompts, shares, strict=True)]
        parts = [Part(s, n, prompt=True) for s, n in zip(prompts, shares, strict=True) if n]
        if self._times.estimate(sum(shares) + len(answers)) <= self._gap:
            parts, answers = [*(Part(s, 1, prompt=False) for s in answers), *parts], []
        self._run(parts, beside=answers)

    def _limited(self, sequence: RunningSequence, tokens: int) -> int:
        if self._prefixes is None:
            return tokens
        return self._prefixes.limit(sequence.state.position, tokens, sequence.prompt_tokens)

    def _rows_for(self, tokens: int, others: bool) -> int:
        """Rows of prompts in the next pass: all that memory allows; beside answers, so few that
        they may go on between two layers."""
        chunk = self.engine.memory.chunk(tokens)
        if others:
            layers = len(self.engine.decoder.layers)
            chunk = self._times.longest(chunk, self._gap * layers)
        if chunk > self._chunk:
            self._return_room()
            self._room.enter_context(self.engine.memory.prompt(chunk))
            self._chunk = chunk
        return chunk

    def _return_room(self) -> None:
        self._room.close()
        self._chunk = 0

    def _decode(self, sequences: Sequence[RunningSequence]) -> None:
        parts = [Part(s, 1, prompt=False) for s in sequences if not (s.over or s.cancelled)]
        if parts:
            self._run(parts, beside=())

    # One pass.

    def _run(self, parts: Sequence[Part], beside: Sequence[RunningSequence]) -> None:
        try:
            self._pass(parts, beside)
        except _Abandoned:
            pass
        except FlashMoeError as error:
            self._run_apart(parts, error)

    def _run_apart(self, parts: Sequence[Part], error: FlashMoeError) -> None:
        """After an error in a common pass: each alone, so that only those fail that meet it again;
        where that is not possible any more, all fail."""
        for part in parts:
            sequence = part.sequence
            if sequence.over or len(parts) == 1 or not sequence.state.can_repeat(part.tokens):
                self._fail(sequence, error)
                continue
            try:
                self._pass([part], ())
            except FlashMoeError as again:
                self._fail(sequence, again)

    def _fail(self, sequence: RunningSequence, error: FlashMoeError) -> None:
        if not sequence.over:
            sequence.fail(error)

    def _pass(self, parts: Sequence[Part], beside: Sequence[RunningSequence]) -> None:
        prompt = any(part.prompt for part in parts)
        times = self.engine.prefill if prompt else self.engine.decode
        if not prompt and len(parts) == 1:
            # The one call that a card has recorded as a graph.
            with self._meter.measured():
                row = self.engine.last_logits(self._batch(parts), times, self._logits[:1])
            self._book(parts)
            self._take(parts[0].sequence, row)
        else:
            watch = (lambda done, of: self._watch(parts, beside, done / of)) if prompt else None
            with self._meter.measured():
                h = self.engine.hidden(self._batch(parts), times, watch)
            self._book(parts)
            self._read(parts, h, times)
        self._last_step = perf_counter()

    def _batch(self, parts: Sequence[Part]) -> Batch:
        ids: list[int] = []
        segments = []
        for part in parts:
            state, begin = part.sequence.state, len(ids)
            ids += part.sequence.ids[state.position : state.position + part.tokens]
            segments.append(Segment(state, begin, len(ids)))
        return Batch(np.array(ids, dtype=np.int32), tuple(segments))

    def _watch(
        self, parts: Sequence[Part], beside: Sequence[RunningSequence], share: float
    ) -> None:
        """After a layer of a pass with prompts: who is cancelled, who has waited long enough."""
        self.between()
        self._tell_cancelled()
        if all(part.sequence.cancelled for part in parts):
            raise _Abandoned
        for part in parts:
            if part.prompt and share < 1:
                part.sequence.progress(int(part.tokens * share))
        # A pass of as many tokens would embed them into the memory of this one.
        waiting = [s for s in beside if not (s.over or s.cancelled)]
        rows = sum(part.tokens for part in parts)
        pause = self._times.estimate(len(waiting)) if waiting else 0.0
        if waiting and len(waiting) < rows and self._overdue(pause):
            self._decode(waiting)

    def _overdue(self, pause: float) -> bool:
        """Whether answers should go on now: in time for the gap, but a prompt gets as long as their
        step takes, or the gap if that is less."""
        passed = perf_counter() - self._last_step
        return passed >= max(self._gap - pause, min(pause, self._gap))

    def _book(self, parts: Sequence[Part]) -> None:
        rows, spent = sum(part.tokens for part in parts), self._meter.last
        self._times.book(rows, spent.seconds)
        for part in parts:
            part.sequence.costs += spent * (part.tokens / rows)

    # What comes out of it.

    def _read(self, parts: Sequence[Part], h: Logits, times: PhaseTimes) -> None:
        """Scores of prompts; then the next token of every sequence whose prompt is run."""
        ends = np.cumsum([part.tokens for part in parts])
        for part, end in zip(parts, ends.tolist(), strict=True):
            if part.prompt:
                self._after_prompt(part, h[end - part.tokens : end], times)
        live = [i for i, part in enumerate(parts) if _wants_token(part.sequence)]
        if not live:
            return
        logits = self.engine.logits_of(h[ends[live] - 1], times, self._logits[: len(live)])
        for row, index in zip(logits, live, strict=True):
            self._take(parts[index].sequence, row)

    def _after_prompt(self, part: Part, h: Logits, times: PhaseTimes) -> None:
        sequence = part.sequence
        sequence.progress(0)
        if self._prefixes is not None:
            self._prefixes.keep(sequence.ids, sequence.state, prompt=True)
        if sequence.request.prompt_logprobs is not None:
            self._score(part, h, times)
        if not sequence.remaining:
            sequence.prompt_done()

    def _score(self, part: Part, h: Logits, times: PhaseTimes) -> None:
        """The log probability of every token that follows one of this part."""
        first = part.sequence.state.position - part.tokens
        following = min(part.tokens, part.sequence.prompt_tokens - 1 - first)
        for begin in range(0, following, HEAD_ROWS):
            rows = h[begin : min(begin + HEAD_ROWS, following)]
            logits = self.engine.logits_of(rows, times, self._logits[: len(rows)])
            for index, row in enumerate(logits):
                part.sequence.score(row, first + begin + index)

    def _take(self, sequence: RunningSequence, logits: Logits) -> None:
        if sequence.cancelled:
            return
        try:
            with self.engine.between_steps("sampling"):
                check_finite(logits[None], self.engine.ops)
                sequence.take(logits)
        except FlashMoeError as error:
            self._fail(sequence, error)

    def _tell_cancelled(self) -> None:
        for sequence in self.running:
            if sequence.cancelled and not sequence.over:
                sequence.finish("cancelled")

    def _drop_finished(self) -> None:
        self._tell_cancelled()
        over = [s for s in self.running if s.over]
        self.running = [s for s in self.running if not s.over]
        for sequence in over:
            self._states.append(sequence.state)
            if self._prefixes is not None and sequence.answered and not sequence.failed:
                self._prefixes.keep(sequence.ids, sequence.state, prompt=False)


def _wants_token(sequence: RunningSequence) -> bool:
    return not (sequence.remaining or sequence.over or sequence.cancelled)
