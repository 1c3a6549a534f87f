"""Families against transformers: float32 on the same bf16 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.checkpoint.directory import Checkpoint
from tests.support import oracle
from tests.support.oracle import assert_close_and_same_choice
from tests.support.tolerances import LOGITS_CHUNKED

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


def test_fewer_experts_per_token_equal_an_oracle_that_has_fewer(
    tiny: Any, family: str, tmp_path: Path
) -> None:
    source = oracle.save(tiny, tmp_path / "source", fused=True)
    flashmoe.pack(source, tmp_path / "packed", experts="bf16", dense="bf16")
    fewer = oracle.tiny_model(family, num_experts_per_tok=1)
    with flashmoe.load(tmp_path / "packed", experts_per_token=1) as model:
        assert_close_and_same_choice(model.logits(IDS), oracle.logits(fewer, IDS))


def test_text_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """As Qwen3.5 is published: text_config, model.language_model.*, vision tensors beside it."""
    tiny = oracle.tiny_multimodal_model()
    source = oracle.save(tiny, tmp_path / "source", fused=True)
    with Checkpoint(source) as checkpoint:
        stems = {".".join(name.split(".")[:2]) for name in checkpoint.tensors}
        assert {"model.language_model", "model.visual"} <= stems
    flashmoe.pack(source, tmp_path / "packed", experts="bf16", dense="bf16")
    with flashmoe.load(tmp_path / "packed") as model:
        assert_close_and_same_choice(model.logits(IDS), oracle.logits(tiny, IDS))
