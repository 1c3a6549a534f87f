"""Text to token ids and back, from a model's own tokenizer.json.

The file is the truth: nothing is guessed from the model type, and nothing (BOS, EOS) is added to
what the caller wrote. Markup text (a rendered chat template) goes through `encode`, text of
unknown origin through `encode_plain`, which cannot produce a control token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from flashmoe.errors import PackError, UsageError
from flashmoe.text.detokenizer import Detokenizer
from flashmoe.text.json_file import read_object, read_text

FILE_NAME = "tokenizer.json"


class Tokenizer:
    """The tokenizer in a directory's tokenizer.json.

    Raises:
        PackError: the file is missing, is no tokenizer, or turns plain text into control tokens.
        StorageError: the file cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._backend = _build(read_text(self.path), self.path)
        added = self._backend.get_added_tokens_decoder()
        # Runs of blanks are added tokens in some vocabularies; they are text, not markup.
        self._markup = frozenset(id for id, token in added.items() if token.content.strip())

    @property
    def vocab_size(self) -> int:
        """Number of ids that the tokenizer knows; a model's vocabulary may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def markup_ids(self) -> frozenset[int]:
        """Ids of the control tokens: turn markers, tool-call tags and the like."""
        return self._markup

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which control tokens are recognised. Nothing is added around it.

        Raises UsageError when the text is not valid Unicode (lone surrogates).
        """
        return _encode(self._backend, text)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` as mere characters: "<|im_end|>" becomes letters, never a control token.

        Text without markup gets the same ids as from `encode`.
        """
        ids = self.encode(text)
        if self.markup_ids.isdisjoint(ids):
            return ids
        ids = _encode(self._plain_backend, text)
        if not self.markup_ids.isdisjoint(ids):
            raise PackError("tokenizer turns plain text into control tokens", where=self.path)
        return ids

    @cached_property
    def markup_texts(self) -> frozenset[str]:
        """What the control tokens look like in text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(added[id].content for id in self._markup)

    def markup_spans(self, text: str) -> list[tuple[int, int, int]]:
        """Control tokens that `encode` finds in `text`: (id, start, stop), in characters."""
        found = _backend_encode(self._backend, text)
        pairs = zip(found.ids, found.offsets, strict=True)
        return [(id, start, stop) for id, (start, stop) in pairs if id in self._markup]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """Id of one token given by its exact text in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        """A fresh streaming decoder."""
        return Detokenizer(lambda ids: self.decode(ids, skip_special=skip_special))

    @cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        # All go, blank runs too: the library renumbers what is left of a partly removed list.
        definition = read_object(self.path, required=True)
        plain = definition | {"added_tokens": [], "post_processor": None}
        return _build(json.dumps(plain), self.path)


def _build(definition: str, path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # The library raises nothing narrower.
        read_object(path, required=True)  # says what is wrong with text that is no JSON object
        raise PackError(f"not a tokenizer ({error})", where=path) from error
    # A truncation rule left in the file would cut prompts without a word.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(_backend_encode(backend, text).ids)


def _backend_encode(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            "text is not valid Unicode", where="prompt", got=f"U+{ord(text[error.start]):04X}"
        ) from error
    return backend.encode(text, add_special_tokens=False)
