"""Norms of whole queries and keys, biases of q, k, v alone: in tiny models that have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe import _native
from flashmoe.ops.parts import AttentionWeights
from flashmoe.ops.reference import ReferenceOps
from tests.ops.test_parts import ComposedCpuOps
from tests.support.packs import TinyPacks, assert_same_bits, load_with, some_ids, transcript
from tests.support.tolerances import LOGITS_REFERENCE

PROMPT = some_ids(80)
ISAS = pytest.mark.parametrize("isa", _native.available_isas())


@pytest.fixture(scope="module", params=["olmoe", "glm4_moe", "minimax_m2", "mixtral"])
def pack(request: pytest.FixtureRequest, tiny_packs: TinyPacks) -> Path:
    return tiny_packs.get(request.param, "bf16", "bf16")


@ISAS
def test_one_call_equals_the_composed_part(pack: Path, isa: str) -> None:
    with load_with(pack, make_ops=ComposedCpuOps, isa=isa, cache=0) as model:
        expected = transcript(model, PROMPT, 6)
    with flashmoe.load(pack, isa=isa, cache=0) as model:
        assert_same_bits(transcript(model, PROMPT, 6), expected)


def test_native_and_numpy_agree(pack: Path) -> None:
    with load_with(pack, make_ops=lambda threads, isa: ReferenceOps(), cache=0) as model:
        expected = model.session().feed_all(PROMPT)
    with flashmoe.load(pack, cache=0) as model:
        got = model.session().feed_all(PROMPT)
    assert np.abs(got - expected).max() <= LOGITS_REFERENCE


@pytest.mark.parametrize("gated", [False, True])
def test_the_length_of_a_norm_says_of_what_it_is(gated: bool) -> None:
    weights = AttentionWeights(*[None] * 7, head_dim=4, eps=1e-6, gated=gated)  # type: ignore[arg-type]
    each, whole = np.ones(4, np.float32), np.ones(8, np.float32)
    assert weights.split_norm(None) == (None, None)
    assert weights.split_norm(each) == (None, each)
    if not gated:
        assert weights.split_norm(whole) == (whole, None)
        return
    with pytest.raises(AssertionError, match="gated"):
        weights.split_norm(whole)
