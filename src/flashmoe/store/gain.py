"""What packing a checkpoint would gain over running it in place. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flashmoe.store.landing import Landing

# Processor time of turning a record, ms per 10^9 bytes read: measured, docs/inplace.md.
COPY_MS_PER_GB = 142.0  # between that of bf16 and that of many small groups
DEAL_MS_PER_GB = 259.0
MXFP4_MS_PER_GB = 560.0


@dataclass(frozen=True)
class Gain:
    """Of one expert, on average, in place; packed it is one read of record_bytes, unturned.

    read_bytes: from the disk, whole pages. extents: runs of the file that do not touch each other.
    reads: what is asked of the disk. landing_ms: processor time to turn it, an estimate.
    """

    record_bytes: int
    read_bytes: float
    extents: float
    reads: float
    landing_ms: float

    @property
    def waste(self) -> float:
        """Share of the bytes read that packing would save, 0 where it saves none."""
        return max(0.0, 1 - self.record_bytes / self.read_bytes)


def gain(landings: Sequence[Landing]) -> Gain:
    """What packing would change for these experts, e.g. those of a layer; at least one."""
    read = fmean(sum(piece.nbytes for piece in one.pieces()) for one in landings)
    return Gain(
        record_bytes=landings[0].nbytes,
        read_bytes=read,
        extents=fmean(_extents(one) for one in landings),
        reads=fmean(len(one.pieces()) for one in landings),
        landing_ms=_rate(landings[0]) * read / 1e9,
    )


def _rate(landing: Landing) -> float:
    if landing.program.mxfp4:
        return MXFP4_MS_PER_GB
    dealt = any(move.turn == "deal" for move in landing.program.moves)
    return DEAL_MS_PER_GB if dealt else COPY_MS_PER_GB


def _extents(landing: Landing) -> int:
    """Runs of files that the pieces lie in."""
    ends = {(piece.path, piece.offset + piece.nbytes) for piece in landing.pieces()}
    begins = {(piece.path, piece.offset) for piece in landing.pieces()}
    return len(begins - ends)
