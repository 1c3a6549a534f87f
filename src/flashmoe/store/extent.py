"""Where an expert lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Extent:
    """A record: `nbytes` at `offset` of `path`, both multiples of 4096.

    crc32c: of all nbytes; None: not checked.
    """

    path: Path
    offset: int
    nbytes: int
    crc32c: int | None
