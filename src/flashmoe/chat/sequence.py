"""One sequence that goes on from prompt to prompt: what it holds is not read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.generate.engine import Prefixes
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

    def restore(self, ids: Sequence[int], prefixes: Prefixes) -> int: ...

    def keep(self, ids: Sequence[int], prefixes: Prefixes) -> None: ...


class Continued:
    """A session and the ids that it was fed.

    session: empty. tokenizer: to see that other ids are the same text. prefixes: where states of
    prompts are kept, for sessions that cannot go back.
    """

    def __init__(
        self, session: Feeds, tokenizer: Tokenizer, prefixes: Prefixes | None = None
    ) -> None:
        self._session, self._tokenizer, self._prefixes = session, tokenizer, prefixes
        self.ids: list[int] = []
        self._stepped = False  # of what it holds, some was fed as tokens of an answer

    def read(
        self, prompt: Sequence[int], on_progress: Callable[[int, int], None]
    ) -> tuple[Logits, int]:
        """Run what the session does not hold of `prompt` -> logits [vocab_size], tokens reused.

        on_progress: called with (tokens run, tokens to run).
        """
        wanted = own_spelling(self.ids, prompt, self._tokenizer)
        held = min(common(self.ids, wanted), len(wanted) - 1)  # the last one gives the logits
        reused = self._back_to(held, wanted)
        self.ids, rest = wanted[:reused], wanted[reused:]
        on_progress(0, len(rest))
        self.ids += rest
        with self._kept_in_step():
            logits = self._feed(rest, on_progress)
        on_progress(len(rest), len(rest))
        return logits, reused

    def _back_to(self, held: int, wanted: Sequence[int]) -> int:
        """Forget all but the first `held` tokens -> how many of `wanted` the session holds."""
        reused = self._session.rewind(held)
        if reused:
            return reused
        self._stepped = False
        return self._session.restore(wanted, self._prefixes) if self._prefixes else 0

    def _feed(self, rest: Sequence[int], on_progress: Callable[[int, int], None]) -> Logits:
        """Feed a prompt's rest; on the way its state is kept, where it was only ever a prompt's."""
        begin, total = 0, len(rest)
        if self._prefixes is not None and not self._stepped:
            cut = self._prefixes.limit(self._session.position, total, len(self.ids))
            if cut < total:
                self._session.feed(rest[:cut], lambda done: on_progress(done, total))
                self._session.keep(self.ids, self._prefixes)
                begin = cut
        return self._session.feed(rest[begin:], lambda done: on_progress(begin + done, total))

    def step(self, id: int) -> Logits:
        """Feed one token of an answer -> logits [vocab_size], written over by the next step."""
        self.ids.append(id)
        self._stepped = True
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
