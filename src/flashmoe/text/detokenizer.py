"""Token ids to text, piece by piece.

A character may be spread over several tokens, and a token may end inside a character. Text is
given out as soon as later tokens can no longer change it, and never twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Streaming decoder: the pieces of push, push, …, finish joined are decode(all ids).

    A trailing U+FFFD may be an unfinished character and is held back until the next token or
    finish() settles it. Decoders that strip a leading blank see the previous chunk as context.
    (With byte-fallback vocabularies the promise needs valid UTF-8: there, a later invalid byte
    changes how the library decodes the valid ones before it.)

    decode: ids -> text of the whole sequence.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._context_chars = 0
        self._pending: list[int] = []
        self._shown = 0

    def push(self, ids: Sequence[int]) -> str:
        """Takes the next ids and returns the text that they settle, perhaps ""."""
        self._pending.extend(ids)
        text = self._pending_text()
        settled = text.rstrip(REPLACEMENT)
        piece = settled[self._shown :]
        if text and settled == text:
            self._commit()
        else:
            self._shown = max(self._shown, len(settled))
        return piece

    def finish(self) -> str:
        """The text still held back, with U+FFFD for what never became a character; then empty."""
        rest = self._pending_text()[self._shown :]
        self._context, self._context_chars = [], 0
        self._pending, self._shown = [], 0
        return rest

    def _pending_text(self) -> str:
        return self._decode(self._context + self._pending)[self._context_chars :]

    def _commit(self) -> None:
        self._context, self._pending, self._shown = self._pending, [], 0
        self._context_chars = len(self._decode(self._context))
