"""The backend under test."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.card import card


@pytest.fixture
def ops() -> Any:
    """CudaOps on the device of these tests."""
    device = card()
    from flashmoe.ops.cuda.backend import CudaOps

    return CudaOps(device)
