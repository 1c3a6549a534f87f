"""What is read for an expert, and how it becomes a record: the plan, and native against NumPy."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe import _native
from flashmoe.quant import Format
from flashmoe.quant.layout import from_bf16
from flashmoe.store.gain import gain
from flashmoe.store.landed import land, run, settle
from flashmoe.store.landing import PAGE, Finite, Landing, Move, Origin, Piece, Program, Slice, Turn
from tests.support.mxfp4 import meaning, random_mxfp4

A, B = Path("a"), Path("b")


def native(program: Program) -> _native.LandingProgram:
    moves = [move.fields() for move in program.moves]
    return _native.LandingProgram(
        program.record_bytes, moves, list(program.mxfp4), list(program.zeros)
    )


def verbatim(rows: int, row_bytes: int, stride: int, at: int) -> Move:
    """Rows one after the other in the record."""
    return Move(
        "copy", "any", row_bytes, row_bytes, 1, rows, stride, at, 0, 8 * row_bytes, row_bytes
    )


@st.composite
def landings(draw: st.DrawFn) -> Landing:
    """Moves of rows from any places of two files, back to back in the record."""
    moves, origins, at = [], [], 0
    for number in range(draw(st.integers(1, 5))):
        rows, size = 8 * draw(st.integers(1, 12)), draw(st.integers(1, 700))
        moves.append(verbatim(rows, size, size * draw(st.integers(1, 2)), at))
        origins.append(
            Origin(draw(st.sampled_from([A, B])), draw(st.integers(0, 60000)), f"{number}")
        )
        at += rows * size
    return Landing(Program(at, tuple(moves)), tuple(origins))


def content(path: Path) -> np.ndarray:
    return np.random.default_rng(path.name.encode()[0]).integers(0, 256, 1 << 18, dtype=np.uint8)


FILES = {path: content(path) for path in (A, B)}


def read(piece: Piece) -> np.ndarray:
    return FILES[piece.path][piece.offset : piece.offset + piece.needed]


@given(landings(), st.integers(1, 1 << 17))
@settings(deadline=None, max_examples=60)
def test_pieces_hold_every_row_once(landing: Landing, piece_bytes: int) -> None:
    pieces, record = landing.pieces(piece_bytes), np.zeros(landing.nbytes, np.uint8)
    seen = [0] * len(landing.program.moves)
    for piece in pieces:
        assert piece.offset % PAGE == 0 == piece.nbytes % PAGE
        assert 0 < piece.needed <= piece.nbytes < piece.needed + PAGE
        for part in piece.slices:
            seen[part.move] += part.count
            run(landing.program, part, read(piece), record)
    assert seen == [move.rows // 8 for move in landing.program.moves]
    for move, origin in zip(landing.program.moves, landing.origins, strict=True):
        for row in range(move.rows):
            start = origin.offset + row * move.row_bytes
            expected = FILES[origin.path][start : start + move.run]
            at = move.at + row * move.run
            assert (record[at : at + move.run] == expected).all()


@given(landings(), st.integers(1, 1 << 17))
@settings(deadline=None, max_examples=60)
def test_neighbours_are_read_together(landing: Landing, piece_bytes: int) -> None:
    """No two pieces could be one: they do not touch, or together they were too large."""
    pieces = landing.pieces(piece_bytes)
    for one, two in pairwise(pieces):
        apart = one.path != two.path or two.offset > one.offset + one.nbytes
        first = two.slices[0]
        begin, end = landing.program.moves[first.move].span(first.first, first.count)
        joined = two.offset + first.start + end - begin - one.offset
        assert apart or joined > piece_bytes


@given(landings())
@settings(deadline=None, max_examples=30)
def test_the_native_routine_agrees_with_its_twin(landing: Landing) -> None:
    made, record = native(landing.program), np.zeros(landing.nbytes, np.uint8)
    for piece in landing.pieces(1 << 15):
        slices = [(p.move, p.first, p.count, p.start) for p in piece.slices]
        assert made.run(slices, read(piece), record)
    assert made.settle(record) == -1
    assert (record == land(landing, read)).all()


def test_units_turns_and_gaps_agree_with_the_twin() -> None:
    moves = (
        Move("copy", "any", 4, 64, 3, 16, 200, 0, 512, 1536, 4),
        Move("deal", "any", 4, 16, 2, 16, 40, 3072, 128, 256, 4),
        Move("copy", "any", 1, 1, 5, 16, 7, 3584, 8, 40, 1),
        Move("widen", "any", 2, 2, 1, 16, 4, 3664, 0, 64, 4),
        Move("copy", "any", 2, 6, 1, 16, 6, 3792, 0, 96, 2),
    )
    program = Program(4096, moves, zeros=((3728, 32), (3888, 208)))
    origins = tuple(Origin(A, 5000 * i + 3, str(i)) for i in range(len(moves)))
    landing, record = Landing(program, origins), np.full(4096, 7, np.uint8)
    for piece in landing.pieces():
        slices = [(p.move, p.first, p.count, p.start) for p in piece.slices]
        native(program).run(slices, read(piece), record)
    native(program).settle(record)
    twin = land(landing, read)
    written = twin != 0xEE
    assert (record[written] == twin[written]).all()


SCALE = Move("copy", "bf16", 2, 2, 1, 8, 2, 0, 0, 16, 2)
ITEMS = {"bf16": 2, "f16": 2, "f32": 4, "divisor": 4, "e4m3": 1}


def both(program: Program, data: np.ndarray) -> np.ndarray | None:
    """The record, the same from native and twin, or None if both find an error."""
    record, twin = (np.zeros(program.record_bytes, np.uint8) for _ in range(2))
    good = native(program).run([(0, 0, 1, 0)], data, record)
    try:
        run(program, Slice(0, 0, 1, 0), data, twin)
    except ValueError:
        assert not good
        return None
    assert good
    assert (record == twin).all()
    return record


@given(
    data=st.binary(min_size=96, max_size=96),
    finite=st.sampled_from(["any", *ITEMS]),
    times=st.integers(1, 3),
)
def test_groups_of_rows_apart(data: bytes, finite: Finite, times: int) -> None:
    """Block formats: the items of a row's group lie among others."""
    size = ITEMS.get(finite, 3)
    move = Move("copy", finite, size, size, 2, 8, 12, 1, 7, 0, 50, times)
    both(Program(8 * 50, (move,)), np.frombuffer(data, np.uint8))


@given(data=st.binary(min_size=16, max_size=16), apart=st.booleans())
def test_codes_flipped(data: bytes, apart: bool) -> None:
    unit, far = (2, 4) if apart else (1, 1)
    move = Move("flip", "any", unit, 2, 1, 8, 2, 0, 0, 32, far)
    assert both(Program(32, (move,)), np.frombuffer(data, np.uint8)) is not None


@pytest.mark.parametrize("turn", ["bias4", "bias8"])
@pytest.mark.parametrize("finite", ["bf16", "f16"])
@pytest.mark.parametrize("apart", [2, 5])
def test_every_scale_becomes_the_bias_of_its_codes(turn: Turn, finite: Finite, apart: int) -> None:
    move = replace(SCALE, turn=turn, finite=finite, apart=apart)
    program = Program(48, (move,))
    usable = 0
    for first in range(0, 1 << 16, 8):
        scales = np.arange(first, first + 8, dtype=np.uint16)
        usable += both(program, scales.view(np.uint8)) is not None
    assert usable > 6000  # of 8192: all but the largest, infinities and NaN


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 0x0001])
@pytest.mark.parametrize("place", [0, 1, 37])
def test_bf16_that_is_not_finite_is_found(bits: int, place: int) -> None:
    program = Program(256, (Move("copy", "bf16", 4, 32, 1, 8, 32, 0, 256, 256, 4),))
    items = np.full(128, 0xBF7F, np.uint16)
    items[place] = bits
    good = bool(np.isfinite(from_bf16(items)).all())
    record = np.zeros(256, np.uint8)
    assert native(program).run([(0, 0, 1, 0)], items.view(np.uint8), record) == good


@pytest.mark.parametrize("seed", range(4))
def test_mxfp4_gets_the_scales_of_the_encoder(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks, scales = random_mxfp4(rng, 16, 64)
    blocks[rng.random(blocks.shape[:2]) < 0.5] &= 0x33  # codes of at most 1.5
    blocks[rng.random(blocks.shape[:2]) < 0.2] &= 0x88  # zeros
    scales[rng.random(scales.shape) < 0.3] = rng.integers(0, 4)
    moves = (
        Move("deal", "any", 4, 16, 2, 16, 32, 0, 136, 272, 4),
        Move("copy", "any", 1, 1, 2, 16, 2, 128, 136, 272, 1),
    )
    program, record = Program(544, moves, mxfp4=((0, 4),)), np.zeros(544, np.uint8)
    made = native(program)
    made.run([(0, 0, 2, 0)], blocks.reshape(-1), record)
    made.run([(1, 0, 2, 0)], scales.reshape(-1), record)
    twin = record.copy()
    assert made.settle(record) == -1
    settle(program, twin)
    assert (record == twin).all()
    assert (record == Format("mxfp4", 32).encode(meaning(blocks, scales))).all()


@given(data=st.binary(min_size=40 * 16 + 40, max_size=40 * 16 + 40))
def test_mxfp4_of_gguf(data: bytes) -> None:
    """Two groups per row, rows 40 bytes apart, two blocks."""
    move = Move("ggml", "any", 17, 17, 2, 16, 40, 0, 136, 272, 17)
    program, read = Program(544, (move,)), np.frombuffer(data, np.uint8)
    record, twin = np.zeros(544, np.uint8), np.zeros(544, np.uint8)
    assert native(program).run([(0, 0, 2, 0)], read, record)
    run(program, Slice(0, 0, 2, 0), read, twin)
    assert (record == twin).all()
    row, group, col = 11, 1, 21
    at = row * 40 + group * 17
    stored = record[272 + group * 136 :][:136]
    code = stored[(col // 8 * 8 + row % 8) * 4 + col % 4] >> (4 if col % 8 >= 4 else 0) & 15
    assert code == (read[at + 1 + col % 16] >> (4 if col >= 16 else 0) & 15)
    assert stored[128 + row % 8] == read[at]


def test_groups_of_gguf_have_17_bytes() -> None:
    move = Move("ggml", "any", 17, 34, 1, 8, 34, 0, 136, 272, 17)
    with pytest.raises(ValueError, match="17 bytes"):
        native(Program(544, (move,)))


@pytest.mark.parametrize(("code", "scale"), [(0, 255), (7, 253), (6, 254), (4, 254)])
def test_mxfp4_beyond_bf16_is_found(code: int, scale: int) -> None:
    program, record = Program(136, (), mxfp4=((0, 1),)), np.zeros(136, np.uint8)
    record[12], record[131] = code, scale  # row 3
    assert native(program).settle(record.copy()) == 0
    with pytest.raises(ValueError, match=r"not finite|NaN"):
        settle(program, record)


@pytest.mark.parametrize(
    ("slices", "message"),
    [([(1, 0, 1, 0)], "index"), ([(0, 1, 2, 0)], "blocks"), ([(0, 0, 2, 1)], "beyond")],
)
def test_slices_outside_are_refused(slices: list[tuple[int, int, int, int]], message: str) -> None:
    program = native(Program(128, (verbatim(16, 8, 8, 0),)))
    with pytest.raises(ValueError, match=message):
        program.run(slices, np.zeros(128, np.uint8), np.zeros(128, np.uint8))


def test_a_move_beyond_the_record_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the record"):
        native(Program(127, (verbatim(16, 8, 8, 0),)))


@pytest.mark.parametrize(
    "change",
    [
        {"block_bytes": 2**63},
        {"groups": 3, "group_bytes": 2**63},
        {"times": 2**61, "group_bytes": 8},
        {"at": 2**64 - 8},
        {"apart": 2**62},
    ],
    ids=str,
)
def test_moves_whose_end_exceeds_64_bits_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="beyond the record"):
        native(Program(192, (replace(verbatim(24, 8, 8, 0), **change),)))


@pytest.mark.parametrize("part", [{"zeros": ((8, 2**64 - 8),)}, {"mxfp4": ((0, 2**61),)}], ids=str)
def test_ranges_whose_end_exceeds_64_bits_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ends"):
        native(Program(192, (verbatim(24, 8, 8, 0),), **part))


def test_slices_whose_end_exceeds_64_bits_are_refused() -> None:
    program = native(Program(192, (replace(verbatim(24, 8, 8, 0), row_bytes=2**61),)))
    with pytest.raises(ValueError, match="beyond its piece"):
        program.run([(0, 0, 3, 0)], np.zeros(192, np.uint8), np.zeros(192, np.uint8))


def test_gain_counts_pages_and_extents() -> None:
    moves = (verbatim(8, 512, 512, 0), verbatim(8, 512, 512, 4096))
    near = Landing(Program(8192, moves), (Origin(A, 100, "g"), Origin(A, 4196, "u")))
    far = Landing(Program(8192, moves), (Origin(A, 0, "g"), Origin(B, 0, "u")))
    found = gain([near])
    assert (found.record_bytes, found.read_bytes, found.extents) == (8192, 12288, 1)
    assert found.waste == pytest.approx(1 / 3)
    assert (gain([far]).read_bytes, gain([far]).extents, gain([far]).waste) == (8192, 2, 0)
