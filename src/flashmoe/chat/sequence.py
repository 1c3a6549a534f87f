"""One sequence that goes on from prompt to prompt: what it holds is not read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]


class Feeds(Protocol):
    """A session of the engine (generate.engine.Session)."""

    @property
    def position(self) -> int: ...

    def feed(
        self, ids: Sequence[int], on_progress: Callable[[int], None] | None = None
    ) -> Logits: ...

    def step(self, id: int) -> Logits: ...

    def rewind(self, position: int) -> int: ...


class Continued:
    """A session and the ids that it was fed.

    session: empty. tokenizer: to see that other ids are the same text.
    """

    def __init__(self, session: Feeds, tokenizer: Tokenizer) -> None:
        self._session, self._tokenizer = session, tokenizer
        self.ids: list[int] = []

    def read(
        self, prompt: Sequence[int], on_progress: Callable[[int, int], None]
    ) -> tuple[Logits, int]:
        """Run what the session does not hold of `prompt` -> logits [vocab_size], tokens reused.

        on_progress: called with (tokens run, tokens to run).
        """
        wanted = own_spelling(self.ids, prompt, self._tokenizer)
        held = min(common(self.ids, wanted), len(wanted) - 1)  # the last one gives the logits
        reused = self._session.rewind(held)
        self.ids = self.ids[:reused]
        rest = wanted[reused:]
        on_progress(0, len(rest))
        self.ids += rest
        with self._kept_in_step():
            logits = self._session.feed(rest, lambda done: on_progress(done, len(rest)))
        on_progress(len(rest), len(rest))
        return logits, reused

    def step(self, id: int) -> Logits:
        """Feed one token of an answer -> logits [vocab_size], written over by the next step."""
        self.ids.append(id)
        with self._kept_in_step():
            return self._session.step(id)

    @contextmanager
    def _kept_in_step(self) -> Iterator[None]:
        """After an error or interrupt: the session as far as it came whole, and its ids."""
        try:
            yield
        except BaseException:
            self.ids = self.ids[: self._session.rewind(self._session.position)]
            raise


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def own_spelling(held: list[int], prompt: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """`prompt` with `held` in front where that is the same text in other tokens.

    A model may write a word in other tokens than the tokenizer would; its own count. Control
    tokens must be the same ones: letters that look like them are something else.
    """
    at = common(held, prompt)
    tail = held[at:]
    if not tail:
        return list(prompt)
    end = _end_of(tokenizer.decode(tail, skip_special=False), prompt, at, tokenizer)
    markup = tokenizer.markup_ids
    if end is None or _only(tail, markup) != _only(prompt[at:end], markup):
        return list(prompt)
    return [*held, *prompt[end:]]


def _end_of(text: str, prompt: Sequence[int], start: int, tokenizer: Tokenizer) -> int | None:
    """The stop for which prompt[start:stop] is exactly `text`, or None."""
    pieces, found = tokenizer.detokenizer(skip_special=False), ""
    for stop in range(start, len(prompt)):
        if found == text:
            return stop
        if not text.startswith(found):
            return None
        found += pieces.push([prompt[stop]])
    return None


def _only(ids: Sequence[int], kept: frozenset[int]) -> list[int]:
    return [id for id in ids if id in kept]
