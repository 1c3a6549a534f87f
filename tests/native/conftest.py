"""Fixtures of the kernel tests."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest

from flashmoe import _native

# By name, not as found: what the processor has and flashmoe does not see must not go unseen.
ISAS = {"x86_64": ["scalar", "avx2", "avx512", "amx"], "aarch64": ["scalar", "neon"]}


@pytest.fixture(params=ISAS.get(platform.machine(), ["scalar"]))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set; one that this machine lacks is a skip."""
    name: str = request.param
    if name not in _native.available_isas():
        pytest.skip(f"this machine cannot run {name} kernels")
    _native.select_isa(name)
    yield name
    _native.select_isa("auto")
