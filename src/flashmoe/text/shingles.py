"""Whether two texts share passages: sketches of their shingles.

A shingle is 13 words in a row, in lower case, as in GPT-3's check for contamination (Brown et al.
2020, appendix C); a text of 6 to 12 words, such as a turn of a chat, is one. Of a long text a
sketch keeps those with the smallest hashes (Broder 1997): of another text, the shingles with hashes
as small then tell which share of it is in the first.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import PackError

WORDS: Final = 13
LEAST_WORDS: Final = 6
KEPT: Final = 4096  # 24 KB in a calibration file and in a pack's manifest
_HASH_BYTES: Final = 6
# Scripts without blanks between words: a character is a word.
_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


@dataclass(frozen=True, eq=False)
class Sketch:
    """hashes: the smallest of a text, rising; total: different shingles of the text."""

    hashes: NDArray[np.uint64]
    total: int

    @property
    def whole(self) -> bool:
        """Whether every shingle is there."""
        return self.total == len(self.hashes)

    def encode(self) -> str:
        """Text for `decode`: "total:base64 of 6 bytes for each hash"."""
        data = self.hashes.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - _HASH_BYTES :]
        return f"{self.total}:{base64.b64encode(data.tobytes()).decode()}"

    @classmethod
    def decode(cls, text: str, where: object) -> Self:
        """Raises PackError for text that `encode` did not write."""
        total, _, encoded = text.partition(":")
        try:
            raw = np.frombuffer(base64.b64decode(encoded, validate=True), np.uint8)
            wide = np.zeros((len(raw) // _HASH_BYTES, 8), np.uint8)
            wide[:, 8 - _HASH_BYTES :] = raw.reshape(-1, _HASH_BYTES)
            found = cls(wide.reshape(-1).view(">u8").astype(np.uint64), int(total))
            if not min(found.total, 1) <= len(wide) <= found.total:
                raise ValueError("not so many hashes")
            return found
        except (ValueError, binascii.Error) as error:
            raise PackError("shingles are damaged", where=where, got=text[:40]) from error


@dataclass(frozen=True)
class Overlap:
    """Of `looked_at` shingles of a text, `shared` are in the other; one in `sampling` of its
    shingles was looked at."""

    looked_at: int
    shared: int
    sampling: float

    @property
    def share(self) -> float:
        """Estimate of the part of the text that is in the other."""
        return self.shared / self.looked_at if self.looked_at else 0.0


def sketch(texts: Iterable[str], kept: int | None = KEPT) -> Sketch:
    """The sketch of some texts; no shingle crosses from one to the next. kept None: of all."""
    found = np.fromiter({_hash(one) for text in texts for one in shingles(text)}, np.uint64)
    found.sort()
    return Sketch(found[:kept], len(found))


def overlap(text: Sketch, other: Sketch) -> Overlap:
    """How much of a text, a sketch of all its shingles, is in what another sketch is of."""
    assert text.whole, "a sketch of all shingles"
    hashes = text.hashes
    if not other.whole:
        hashes = hashes[hashes <= other.hashes[-1]]
    shared = int(np.isin(hashes, other.hashes).sum())
    sampling = other.total / len(other.hashes) if len(other.hashes) else 1.0
    return Overlap(len(hashes), shared, sampling)


def shingles(text: str) -> Iterator[str]:
    """Each run of 13 words; all words, where there are fewer."""
    words = _WORD.findall(text.lower())
    runs = max(len(words) - WORDS + 1, len(words) >= LEAST_WORDS)
    for start in range(runs):
        yield " ".join(words[start : start + WORDS])


def _hash(shingle: str) -> int:
    return int.from_bytes(blake2b(shingle.encode(), digest_size=_HASH_BYTES).digest(), "big")
