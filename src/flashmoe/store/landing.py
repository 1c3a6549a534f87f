"""How the bytes of an expert, as a checkpoint has them, become the record that a pack would hold.

Pure: what is read and where it goes. The reader threads carry it out (native/stream/landing.h);
`store/landed.py` is the same in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from flashmoe.quant.layout import ROWS

PAGE: Final = 4096
# What is read at once, at most and about: a thread holds so much while it turns it, and a demand
# waits for so much of a guess. Other sizes were not tried.
PIECE_BYTES: Final = 1 << 20

Turn = Literal["copy", "deal", "widen", "flip", "bias4", "bias8", "ggml"]
Finite = Literal["any", "bf16", "f16", "f32", "e4m3", "divisor"]


@dataclass(frozen=True, slots=True)
class Move:
    """How rows of a source become rows of the 8-row blocks of a record; sizes in bytes.

    Source: `rows` rows, row_bytes from one to the next, each `groups` runs of `run` bytes. Record:
    block b starts at `at` + b * block_bytes; its groups, each run `times` times, are group_bytes
    from one to the next. There, a unit of `unit` bytes of the second row comes `apart` after
    that of the first: unit again, where units of the eight rows alternate, else a run is one unit.

    turn: "copy"; "deal": 8 codes of 4 bits in order to the order of q4 (quant/q4.py); "widen": bf16
    to float32; "flip": int8 to uint8 about 128; "bias4", "bias8": a scale times -8 or -128;
    "ggml": a group of MXFP4 as GGUF has it, 17 bytes, to one of 8 rows (quant/mxfp4.py).
    finite: of what type the items are whose NaN or infinity is an error; of a "divisor" zero too.
    """

    turn: Turn
    finite: Finite
    unit: int
    run: int
    groups: int
    rows: int
    row_bytes: int
    at: int
    group_bytes: int
    block_bytes: int
    apart: int
    times: int = 1

    def span(self, first: int, count: int) -> tuple[int, int]:
        """Where the rows of blocks [first, first + count) begin and end, from row 0."""
        begin = first * ROWS * self.row_bytes
        return begin, begin + (count * ROWS - 1) * self.row_bytes + self.groups * self.run

    def fields(self) -> tuple[str, str, int, int, int, int, int, int, int, int, int, int]:
        """As _native.LandingProgram takes them."""
        return (
            self.turn,
            self.finite,
            self.unit,
            self.run,
            self.groups,
            self.times,
            self.rows,
            self.row_bytes,
            self.at,
            self.group_bytes,
            self.block_bytes,
            self.apart,
        )


@dataclass(frozen=True, slots=True)
class Program:
    """What experts of the same shape share.

    mxfp4: (at, groups of 8 rows) of matrices in that format: the encoder's scales are chosen when
    all moves are done. zeros: (at, bytes) of a record that no move writes.
    """

    record_bytes: int
    moves: tuple[Move, ...]
    mxfp4: tuple[tuple[int, int], ...] = ()
    zeros: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where row 0 of a move lies: `offset` of a file, in the tensor of that name."""

    path: Path
    offset: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Slice:
    """Blocks [first, first + count) of a move; row 0 of them is `start` bytes into the piece."""

    move: int
    first: int
    count: int
    start: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole pages of a file that are read at once, of which the first `needed` bytes must be there:
    a file may end inside a page."""

    path: Path
    offset: int
    nbytes: int
    needed: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Landing:
    """An expert of a checkpoint. origins: one for each move of the program."""

    program: Program
    origins: tuple[Origin, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the record that it becomes."""
        return self.program.record_bytes

    def tensor_at(self, index: int) -> Origin:
        """Where a number came from that is not finite: of a move or, after all moves, a blob."""
        moves = self.program.moves
        if index < len(moves):
            return self.origins[index]
        at, _ = self.program.mxfp4[index - len(moves)]
        return next(o for m, o in zip(moves, self.origins, strict=True) if m.at == at)

    def pieces(self, piece_bytes: int = PIECE_BYTES) -> tuple[Piece, ...]:
        """What is read for it, in file order; at most about piece_bytes at a time."""
        return tuple(_joined(sorted(self._cuts(piece_bytes), key=_place), piece_bytes))

    def _cuts(self, piece_bytes: int) -> Iterator[_Cut]:
        for index, (move, origin) in enumerate(zip(self.program.moves, self.origins, strict=True)):
            blocks = move.rows // ROWS
            most = max(1, piece_bytes // 2 // max(1, ROWS * move.row_bytes))
            count = -(-blocks // -(-blocks // most))  # even: a small last one costs as much
            for first in range(0, blocks, count):
                here = min(count, blocks - first)
                begin, end = move.span(first, here)
                yield _Cut(
                    origin.path, origin.offset + begin, origin.offset + end, index, first, here
                )


@dataclass(frozen=True, slots=True)
class _Cut:
    """Blocks of a move and the bytes [begin, end) of the file that they lie in."""

    path: Path
    begin: int
    end: int
    move: int
    first: int
    count: int


def _place(cut: _Cut) -> tuple[Path, int, int]:
    return cut.path, cut.begin, cut.end


def _joined(cuts: Iterable[_Cut], piece_bytes: int) -> Iterator[Piece]:
    """Cuts in file order -> pieces: those that share or touch a page are read together."""
    group: list[_Cut] = []
    end = 0
    for cut in cuts:
        if group and not _belongs(cut, group[0], end, piece_bytes):
            yield _piece(group, end)
            group = []
        end = max(end, cut.end) if group else cut.end
        group.append(cut)
    if group:
        yield _piece(group, end)


def _belongs(cut: _Cut, first: _Cut, end: int, piece_bytes: int) -> bool:
    """Whether a cut is read with a group that ends at `end`: no page comes in for nothing, and the
    piece stays small unless the group has most of the cut already."""
    touches = cut.path == first.path and _down(cut.begin) <= _up(end)
    small = max(cut.end, end) - _down(first.begin) <= piece_bytes
    return touches and (small or 2 * (cut.end - end) < cut.end - cut.begin)


def _piece(group: Sequence[_Cut], end: int) -> Piece:
    offset = _down(group[0].begin)
    slices = tuple(Slice(c.move, c.first, c.count, c.begin - offset) for c in group)
    return Piece(group[0].path, offset, _up(end) - offset, end - offset, slices)


def _down(offset: int) -> int:
    return offset // PAGE * PAGE


def _up(offset: int) -> int:
    return -(-offset // PAGE) * PAGE
