from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe import _native
from flashmoe.store.crc import crc32c

# RFC 3720, B.4, and the customary check value.
VECTORS = {
    b"": 0,
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(reversed(range(32))): 0x113FDB5C,
}


@pytest.mark.parametrize(("data", "crc"), VECTORS.items())
def test_known_values(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc
    assert _native.crc32c(data) == crc


@settings(deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_twins_agree_and_continue(head: bytes, tail: bytes) -> None:
    whole = crc32c(head + tail)
    assert crc32c(tail, crc32c(head)) == whole
    assert _native.crc32c(head + tail) == whole
    assert _native.crc32c(tail, _native.crc32c(head)) == whole
