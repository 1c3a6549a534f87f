"""CRC-32C against published vectors, a bitwise twin, and itself in pieces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe._native import crc32c

# The SSE4.2 code changes its ways at multiples of these.
SHORT, LONG = 3 * 2048, 3 * 65536

paths = pytest.mark.parametrize(
    "crc", [crc32c, partial(crc32c, portable=True)], ids=["cpu", "portable"]
)
Crc = Callable[..., int]


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8)


def bitwise(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@paths
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_vectors(crc: Crc, data: bytes, expected: int) -> None:
    assert crc(array(data)) == expected


@paths
@given(st.binary(max_size=100))
def test_equals_the_bitwise_definition(crc: Crc, data: bytes) -> None:
    assert crc(array(data)) == bitwise(data)


@paths
@pytest.mark.parametrize("size", [SHORT - 1, SHORT, SHORT + 1, 2 * SHORT + 15])
def test_short_lanes_equal_the_bitwise_definition(crc: Crc, size: int) -> None:
    data = np.random.default_rng(size).bytes(size + 3)
    for start in (0, 3):  # the second start is not aligned
        assert crc(array(data)[start : start + size]) == bitwise(data[start : start + size])


@pytest.mark.parametrize("size", [LONG - 1, LONG, LONG + 1, 2 * LONG + SHORT + 15])
def test_long_lanes_equal_the_portable_code(size: int) -> None:
    data = array(np.random.default_rng(size).bytes(size + 3))
    for start in (0, 3):
        part = data[start : start + size]
        assert crc32c(part) == crc32c(part, portable=True)


@paths
@given(st.integers(0, 4 * SHORT), st.integers(0, 2**32))
def test_pieces_continue(crc: Crc, cut: int, seed: int) -> None:
    data = array(np.random.default_rng(seed).bytes(4 * SHORT))
    assert crc(data[cut:], crc(data[:cut])) == crc(data)
