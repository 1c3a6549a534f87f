"""Sizes as people write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import UsageError
from flashmoe.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("100b", 100),
        ("1k", 1024),
        ("3G", 3 << 30),
        ("512MiB", 512 << 20),
        ("1.5g", 3 << 29),
        (" 2 GB ", 2_000_000_000),
        (".5K", 512),
        ("1TiB", 1 << 40),
        ("25%", 250),
        ("0%", 0),
        ("100%", 1000),
        ("33.3 %", 333),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text, option="--ram", whole=1000) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1", "-1G", "1e9", "nan", "inf", "3 X", "3GiBB", "1,5G", "%", "101%", "9999999999T"],
)
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(UsageError, match="--ram: not a size; expected a size such as") as caught:
        parse_size(text, option="--ram", whole=1000)
    assert repr(text) in str(caught.value)


def test_a_percentage_needs_a_whole() -> None:
    with pytest.raises(UsageError, match="1000000"):
        parse_size("25%", option="--ram")


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert 0 <= parse_size(text, option="--cache", whole=10**12) < 2**63


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 29, "1.50 GiB"),
        (2 << 40, "2048.00 GiB"),
    ],
)
def test_format(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text
