"""Families against transformers: float32 on the same bf16 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from tests.support import oracle
from tests.support.tolerances import LOGITS_CHUNKED, LOGITS_ORACLE

pytestmark = pytest.mark.oracle
IDS = np.arange(1, 151, dtype=np.int32) % 512


@pytest.fixture(scope="module", params=oracle.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def tiny(family: str) -> Any:
    return oracle.tiny_model(family)


@pytest.fixture(scope="module", params=["per-expert", "fused"])
def packed(
    request: pytest.FixtureRequest, tiny: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    source = oracle.save(tiny, root / "source", fused=request.param == "fused")
    flashmoe.pack(source, root / "packed", experts="bf16", dense="bf16")
    return root / "packed"


def assert_close_and_same_choice(got: np.ndarray, expected: np.ndarray) -> None:
    """Within tolerance, and the same argmax wherever it is not a near tie."""
    assert np.abs(got - expected).max() <= LOGITS_ORACLE
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > LOGITS_ORACLE
    assert clear.any()
    assert (got.argmax(1) == expected.argmax(1))[clear].all()


def test_logits_equal_the_oracle(packed: Path, tiny: Any) -> None:
    with flashmoe.load(packed) as model:
        assert_close_and_same_choice(model.logits(IDS), oracle.logits(tiny, IDS))


def test_prefill_in_chunks_of_any_size_agrees(packed: Path) -> None:
    with flashmoe.load(packed) as model:
        whole = model.logits(IDS)
        for chunk in (1, 2, 7, 63, 64, 65, 149):
            parts = model.session().feed_all(IDS, chunk=chunk)
            assert np.abs(parts - whole).max() <= LOGITS_CHUNKED, chunk


def test_cuts_at_multiples_of_64_change_no_bit(packed: Path) -> None:
    with flashmoe.load(packed) as model:
        whole = model.logits(IDS)
        np.testing.assert_array_equal(model.session().feed_all(IDS, chunk=64), whole)
        np.testing.assert_array_equal(model.session().feed_all(IDS, chunk=128), whole)
