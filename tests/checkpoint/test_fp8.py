"""FP8 codes and block scales against torch and against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe.checkpoint import fp8
from tests.support.oracle import torch

CODES = np.arange(256, dtype=np.uint8)[None]


def test_codes_mean_what_torch_reads() -> None:
    t = torch()
    expected = t.from_numpy(CODES.copy()).view(t.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(fp8.to_float32(CODES, np.ones((1, 2), np.float32)), expected)


def test_some_codes_by_hand() -> None:
    codes = np.array([[0x00, 0x01, 0x07, 0x08, 0x38, 0x7E, 0x80, 0xB8, 0xFE]], np.uint8)
    values = fp8.to_float32(codes, np.ones((1, 1), np.float32))
    assert values.tolist() == [[0, 2**-9, 7 * 2**-9, 2**-6, 1, 448, -0.0, -1, -448]]
    assert np.isnan(fp8.to_float32(np.array([[0x7F, 0xFF]], np.uint8), np.ones((1, 1), "f4"))).all()


@pytest.mark.parametrize("cols", [1, 127, 128, 129, 256])
def test_each_block_of_columns_has_its_scale(cols: int) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 127, (3, cols), dtype=np.uint8)
    scales = rng.uniform(0.5, 2, (3, -(-cols // 128))).astype(np.float32)
    plain = fp8.to_float32(codes, np.ones_like(scales))
    expected = plain * scales[:, np.arange(cols) // 128]
    np.testing.assert_array_equal(fp8.to_float32(codes, scales), expected)
