"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flashmoe import _native


@pytest.fixture(params=["scalar", "avx2", "avx512", "amx"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set; one that this machine lacks is a skip."""
    name: str = request.param
    if name not in _native.available_isas():
        pytest.skip(f"this machine cannot run {name} kernels")
    _native.select_isa(name)
    yield name
    _native.select_isa("auto")
