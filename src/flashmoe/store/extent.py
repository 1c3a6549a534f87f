"""Where bytes of a pack lie: what its reader says and the expert cache asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the record of one expert lies.

    offset and nbytes are multiples of 4096. crc32c: of all nbytes; None: not checked.
    """

    path: Path
    offset: int
    nbytes: int
    crc32c: int | None
