"""The GGUF formats mean, bit for bit, what the gguf package says that they mean."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from flashmoe.errors import UsageError
from flashmoe.quant import Format, gguf_iq4, gguf_k, gguf_legacy
from tests.support.blocks import BY_NAME, random_runs

GGUF = [fmt.name for module in (gguf_legacy, gguf_k, gguf_iq4) for fmt in module.FORMATS]


def kind_of(name: str) -> gguf.GGMLQuantizationType:
    upper = name.upper()
    return next(k for k in gguf.GGMLQuantizationType if k.name.upper() == upper)


@pytest.mark.parametrize("name", GGUF)
def test_runs_decode_to_the_bits_of_the_gguf_package(name: str) -> None:
    runs = random_runs(np.random.default_rng(1), name, 400)
    expected = gguf.dequantize(runs, kind_of(name))
    got = BY_NAME[name].unpack(runs)
    assert np.array_equal(got, expected)
    # A product that is zero may have either sign; everything else is equal bit for bit.
    assert np.array_equal(got.view(np.uint32)[got != 0], expected.view(np.uint32)[got != 0])


@pytest.mark.parametrize("name", GGUF)
def test_sizes_are_those_of_the_gguf_package(name: str) -> None:
    assert (BY_NAME[name].cols, BY_NAME[name].nbytes) == gguf.GGML_QUANT_SIZES[kind_of(name)]
    cols = 2 * BY_NAME[name].cols
    assert Format(name).nbytes(9, cols) == 16 * 2 * BY_NAME[name].nbytes
    assert Format(name).fits(cols)
    assert not Format(name).fits(cols + 16)


def test_weights_cannot_be_converted_to_a_block_format() -> None:
    with pytest.raises(UsageError, match="cannot be converted to a block format"):
        Format("q4_k").encode(np.zeros((8, 256), np.float32))
