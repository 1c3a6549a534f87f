"""Keeps the text of strangers from becoming markup in a rendered chat template.

A template writes its own turn markers and pastes in what clients sent; the tokenizer could not
tell the two apart. So before rendering, every piece of client text that is a control token, or
could grow into one beside other text, gives way to a private-use character that occurs nowhere
else. After rendering, the prompt is cut at the control tokens (all the template's own now), the
private characters turn back into what they stand for, and each stretch is encoded as mere text.
Text without such pieces is not touched: its prompt has the ids of the whole rendered text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flashmoe.text.tokenizer import Tokenizer

# Supplementary private use planes: no assigned character, and rare in any text.
_PRIVATE = range(0xF0000, 0x10FFFE)
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
# Words that templates compare with, though they may be part of a control token's name.
_KEYWORDS = frozenset(
    re.findall(
        r"\S+",
        "type properties required items enum description name parameters function arguments "
        "default object array string integer number boolean null anyOf oneOf allOf $ref $defs "
        "title format const additionalProperties strict minimum maximum nullable",
    )
)


@dataclass(frozen=True)
class Markup:
    """The control tokens of a vocabulary, and how text could come close to one.

    heads: proper beginnings of tokens, tails: proper endings.
    """

    tokens: frozenset[str]
    heads: frozenset[str]
    tails: frozenset[str]
    longest: int

    def inside(self, text: str) -> bool:
        """Whether `text` is part of a token, so that other text around it could make the token."""
        return bool(text) and any(text in token for token in self.tokens)


@lru_cache(maxsize=16)
def markup_of(tokens: frozenset[str]) -> Markup:
    """The Markup of a set of control tokens."""
    heads = frozenset(token[:n] for token in tokens for n in range(1, len(token)))
    tails = frozenset(token[-n:] for token in tokens for n in range(1, len(token)))
    return Markup(tokens, heads, tails, max(map(len, tokens), default=0))


class Shield:
    """Covers client text for one rendering, and uncovers it in what was rendered.

    taken: text in which a private character may occur already (the request and the template).
    """

    def __init__(self, tokenizer: Tokenizer, taken: str) -> None:
        self._tokenizer = tokenizer
        self._markup = markup_of(tokenizer.markup_texts)
        used = {char for char in taken if ord(char) >= _PRIVATE.start}
        self._free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self._covers: dict[str, str] = {}
        self._originals: dict[int, str] = {}

    def mark(self) -> str:
        """A private character that stands for nothing: a place to be found again."""
        return next(self._free)

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message with its texts covered; its structure stays as templates expect it."""
        role = message["role"]
        return self.fields(message) | {"role": role if role in _ROLES else self.word(role)}

    def fields(self, mapping: Mapping[str, Any]) -> dict[str, Any]:
        """A mapping whose keys the template knows, with what the client put in covered."""
        return {key: self._field(key, value) for key, value in mapping.items()}

    def data(self, value: Any) -> Any:
        """Client-made JSON (a tool, arguments) with every text covered, keys included."""
        if isinstance(value, str):
            return self.word(value)
        if isinstance(value, Mapping):
            return {self.word(str(key)): self.data(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        return value

    def word(self, text: str) -> str:
        """A name that a template may write between characters of its own."""
        if text not in _KEYWORDS and self._markup.inside(text):
            return self._cover(text)
        return self.text(text)

    def text(self, text: str) -> str:
        """`text` without control tokens, and without halves of one at its ends."""
        found = [token for token in self._markup.tokens if token in text]
        if found:
            pattern = "|".join(re.escape(token) for token in sorted(found, key=len, reverse=True))
            text = re.sub(pattern, lambda match: self._cover(match[0]), text)
        return self._cover_ends(text)

    def uncover(self, text: str) -> str:
        """`text` with the private characters replaced by what they stand for."""
        return text.translate(self._originals)

    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered prompt: control tokens where the template wrote them, only there."""
        if not self._originals:
            return self._tokenizer.encode(rendered)
        return [id for stretch in self._stretches(rendered) for id in stretch]

    def _stretches(self, rendered: str) -> Iterator[list[int]]:
        done = 0
        for id, start, stop in self._tokenizer.markup_spans(rendered):
            yield self._tokenizer.encode_plain(self.uncover(rendered[done:start]))
            yield [id]
            done = stop
        yield self._tokenizer.encode_plain(self.uncover(rendered[done:]))

    def _field(self, key: str, value: Any) -> Any:
        if isinstance(value, str):
            return self.word(value) if key == "name" else self.text(value)
        if isinstance(value, Mapping):
            return self.data(value) if key == "arguments" else self.fields(value)
        if isinstance(value, list | tuple):
            return [self._field(key, item) for item in value]
        return value

    def _cover_ends(self, text: str) -> str:
        reach = min(self._markup.longest - 1, len(text))
        for n in range(reach, 0, -1):
            if text[-n:] in self._markup.heads:
                text = text[:-n] + self._cover(text[-n:])
                break
        for n in range(min(reach, len(text)), 0, -1):
            if text[:n] in self._markup.tails:
                return self._cover(text[:n]) + text[n:]
        return text

    def _cover(self, text: str) -> str:
        if text not in self._covers:
            cover = next(self._free)
            self._covers[text], self._originals[ord(cover)] = cover, text
        return self._covers[text]
