"""Random bytes of block formats whose weights are of ordinary size."""

from __future__ import annotations

import numpy as np

from flashmoe import _native
from flashmoe.quant import BLOCK_FORMATS, Format, affine, blocks, nvfp4
from flashmoe.quant.blocks import BlockFormat
from flashmoe.quant.layout import Bytes
from tests.support.matrices import Stored, at_offset

# Where the float16 numbers of a run lie. All other bytes may be anything.
HALVES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
}
BY_NAME: dict[str, BlockFormat] = {fmt.name: fmt for fmt in BLOCK_FORMATS}


def random_runs(rng: np.random.Generator, name: str, count: int) -> Bytes:
    """uint8 [count, nbytes] with every code and scale equally likely."""
    runs = rng.integers(0, 256, (count, BY_NAME[name].nbytes), dtype=np.uint8)
    if name not in HALVES:
        return _moderate(rng, name, runs)
    for at in HALVES[name]:
        halves = (rng.standard_normal((count, 1)) * 0.1).astype("<f2")
        runs[:, at : at + 2] = halves.view(np.uint8)
    return runs


def _moderate(rng: np.random.Generator, name: str, runs: Bytes) -> Bytes:
    """Affine and NVFP4 runs with ordinary scales in place."""
    shape, count = affine.SHAPES.get(name), len(runs)
    if shape is None:
        groups = BY_NAME[name].cols // nvfp4.GROUP
        runs[:, :4] = rng.uniform(0.5, 2, (count, 1)).astype("<f4").view(np.uint8)
        runs[:, 4 : 4 + groups] = rng.integers(0, 64, (count, groups))
        return runs
    size, start = affine.SCALE_BYTES[shape.scale], shape.code_bytes
    numbers = 2 if shape.kind == "affine" else 1
    floats = rng.standard_normal((count, numbers)).astype(np.float32) * np.float32(0.1)
    runs[:, start : start + numbers * size] = affine.narrow(floats, shape.scale)
    return runs


def random_block_matrix(
    rng: np.random.Generator, name: str, rows: int, cols: int, offset: int = 192
) -> Stored:
    """A native matrix of random runs that starts `offset` bytes after a 64-byte boundary."""
    runs = random_runs(rng, name, rows * cols // BY_NAME[name].cols)
    data = at_offset(blocks.pad_rows(runs.reshape(rows, -1)), offset)
    native = _native.Matrix(name, 0, rows, cols, data)
    return Stored(native, Format(name).decode(data, rows, cols), data)
