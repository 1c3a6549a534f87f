"""Prompt in, pieces of text out: prefill, then sample, show and feed one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import ContextLengthError, UsageError
from flashmoe.generate.sampling import Sampler, SamplingOptions
from flashmoe.generate.stop import StopStrings
from flashmoe.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "stop_string"]
Progress = Callable[[int, int], None]
Phase = Callable[[str], AbstractContextManager[None]]


class Engine(Protocol):
    """A sequence that a model runs: what the loop needs to know of it."""

    @property
    def context_length(self) -> int:
        """Most tokens that can be fed."""

    @property
    def position(self) -> int:
        """Tokens fed so far."""

    def feed(
        self, ids: Sequence[int], on_progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Runs `ids` after what was fed before -> logits float32 [vocab] after the last one.

        on_progress: called now and then with how many of them are done.
        """

    def step(self, id: int) -> NDArray[np.float32]:
        """Feeds one token of the answer."""


@dataclass(frozen=True)
class Piece:
    """One generated token.

    text: what the token adds to the answer; "" while a character or a stop string is undecided.
    logprob: natural log of its probability under the plain softmax.
    finish_reason: set on the last piece: "stop" (a stop token), "length" (max_tokens reached or
    context full) or "stop_string".
    """

    text: str
    token_id: int
    logprob: float
    finish_reason: FinishReason | None = None


def untimed(phase: str) -> AbstractContextManager[None]:
    """The phase timer that measures nothing."""
    return nullcontext()


def generate(
    engine: Engine,
    prompt_ids: Sequence[int],
    options: SamplingOptions,
    tokenizer: Tokenizer,
    stop_ids: Collection[int],
    on_progress: Progress | None = None,
    *,
    chunk: int = 1024,
    phase: Phase = untimed,
) -> Generator[Piece, None, None]:
    """Yields a Piece per token, the stop token included (without text).

    A piece is yielded before its token is fed: closing the iterator, or an interrupt, leaves the
    engine after the last token that it ran to the end.

    on_progress: called as (prompt tokens run, prompt tokens) before and after each prefill chunk
    of at most `chunk` tokens, and within it as the engine tells. phase: times "sampling".

    Raises, before any work, UsageError (empty prompt) or ContextLengthError (no room for it);
    while iterating, NumericError and whatever the engine raises.
    """
    if len(prompt_ids) == 0:
        raise UsageError("the prompt is empty", where="prompt")
    room = engine.context_length - engine.position
    if len(prompt_ids) > room:
        raise ContextLengthError(
            "the prompt does not fit the context",
            where="prompt",
            expected=f"at most {room} tokens",
            got=len(prompt_ids),
            hint="Shorten it or raise the context length (--ctx).",
        )
    steps = _Steps(engine, list(prompt_ids), options, phase)
    return _pieces(steps, tokenizer, frozenset(stop_ids), on_progress or _ignore, chunk)


def _ignore(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class _Within:
    """Progress of the chunk [start, stop) of a prompt; its end is told when it is fed."""

    on_progress: Progress
    start: int
    stop: int
    total: int

    def __call__(self, done: int) -> None:
        if 0 < done < self.stop - self.start:
            self.on_progress(self.start + done, self.total)


class _Steps:
    """Tokens without text: runs the engine and samples."""

    def __init__(
        self, engine: Engine, prompt: list[int], options: SamplingOptions, phase: Phase
    ) -> None:
        self._engine, self._phase = engine, phase
        self._prompt, self._history = prompt, list(prompt)
        self._sampler = Sampler(options)
        self._last = len(prompt) + options.max_tokens
        self.options = options

    def prefill(self, on_progress: Progress, chunk: int) -> NDArray[np.float32]:
        total = len(self._prompt)
        on_progress(0, total)
        for start in range(0, total, chunk):
            stop = min(start + chunk, total)
            watch = _Within(on_progress, start, stop, total)
            logits = self._engine.feed(self._prompt[start:stop], watch)
            on_progress(stop, total)
        return logits

    def sample(self, logits: NDArray[np.float32]) -> tuple[int, float]:
        with self._phase("sampling"):
            token, logprob = self._sampler.sample(logits, self._history, len(self._prompt))
        self._history.append(token)
        return token, logprob

    def feed(self, token: int) -> NDArray[np.float32]:
        return self._engine.step(token)

    @property
    def exhausted(self) -> bool:
        """Whether no further token may follow the one sampled last."""
        full = self._engine.position >= self._engine.context_length
        return full or len(self._history) >= self._last


def _pieces(
    steps: _Steps,
    tokenizer: Tokenizer,
    stop_ids: frozenset[int],
    on_progress: Progress,
    chunk: int,
) -> Generator[Piece, None, None]:
    answer = Answer(tokenizer, steps.options.stop)
    logits = steps.prefill(on_progress, chunk)
    while True:
        token, logprob = steps.sample(logits)
        reason: FinishReason | None = "length" if steps.exhausted else None
        if token in stop_ids:
            reason = "stop"
        ids = [] if reason == "stop" else [token]
        text, stopped = answer.add(ids, last=reason is not None)
        reason = "stop_string" if stopped else reason
        yield Piece(text, token, logprob, reason)
        if reason is not None:
            return
        logits = steps.feed(token)


class Answer:
    """Text of the tokens so far, with stop strings cut off.

    skip_special: control tokens have no text.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], skip_special: bool = True
    ) -> None:
        self._detokenizer = tokenizer.detokenizer(skip_special=skip_special)
        self._stop = StopStrings(stop)

    @property
    def matched(self) -> str | None:
        """The stop string that ended it."""
        return self._stop.matched

    def add(self, ids: Sequence[int], last: bool) -> tuple[str, bool]:
        """The text to show for the next `ids`, and whether a stop string ended the answer."""
        text = self._stop.push(self._detokenizer.push(ids))
        if last:
            text += self._stop.push(self._detokenizer.finish()) + self._stop.finish()
        return text, self._stop.matched is not None
