"""Families against transformers: float32 on the same bf16 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.checkpoint.directory import Checkpoint
from flashmoe.models.registry import load_family
from flashmoe.ops.reference import ReferenceOps
from flashmoe.sizing import scratch_bytes
from tests.support import oracle
from tests.support.oracle import assert_close_and_same_choice
from tests.support.packs import assert_same_bits, load_with, transcript
from tests.support.serving import ask, run_all, scheduler_of
from tests.support.tolerances import LOGITS_CHUNKED, LOGITS_REFERENCE

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


def test_no_bit_depends_on_cache_threads_or_prefetch(packed: Path) -> None:
    with flashmoe.load(packed, cache="all", threads=2, prefetch="off") as model:
        expected = transcript(model, IDS.tolist(), steps=6)
    for cache, threads, prefetch in (("0", 1, "on"), ("all", 5, "on"), ("0", 2, "off")):
        with flashmoe.load(packed, cache=cache, threads=threads, prefetch=prefetch) as model:
            assert_same_bits(transcript(model, IDS.tolist(), steps=6), expected)


def test_a_prompt_that_was_kept_gives_the_same_bits(packed: Path) -> None:
    with flashmoe.load(packed, parallel=2, prefix_ram=32 << 20, context_length=256) as model:
        kept = model.prefix_cache()
        run_all(scheduler_of(model, 2, kept), [ask(IDS[:130].tolist(), 4)])
        again = run_all(scheduler_of(model, 2, kept), [ask(IDS.tolist(), 4)])[0]
        alone = run_all(scheduler_of(model, 2, None), [ask(IDS.tolist(), 4)])[0]
        assert again.cached == 128
        assert again.bits == alone.bits


@pytest.mark.parametrize("name", ["gemma4_text", "deepseek_v32", "glm_moe_dsa", "deepseek_v4"])
def test_the_numpy_backend_agrees(name: str, tmp_path: Path) -> None:
    """Of families whose layers are composed of primitives in layers/, beyond index_topk keys."""
    source = oracle.save(oracle.tiny_model(name), tmp_path / "source", fused=True)
    flashmoe.pack(source, tmp_path / "packed", experts="bf16", dense="bf16")
    ids = IDS[:60]
    with flashmoe.load(tmp_path / "packed") as model:
        expected = model.logits(ids)
    with load_with(tmp_path / "packed", make_ops=lambda threads, isa: ReferenceOps()) as model:
        assert np.abs(model.logits(ids) - expected).max() <= LOGITS_REFERENCE


def test_scratch_and_state_stay_within_their_estimates(packed: Path) -> None:
    with flashmoe.load(packed, context_length=256) as model:
        model.logits(IDS)
        specs = load_family(model.family).weights(model.config)
        engine: Any = model.session().engine
        hidden = 4 * len(IDS) * engine.decoder.width  # the residual is not from the scratch
        assert engine.ops.scratch_bytes + hidden <= scratch_bytes(model.config, specs, len(IDS))
        assert model.stats.kv_bytes == sum(
            array.nbytes for layer in engine.new_state().layers for array in kept_arrays(layer)
        )


def kept_arrays(layer: Any) -> list[np.ndarray]:
    if hasattr(layer, "arrays"):
        return list(layer.arrays)
    names = ("k", "v", "rows", "index_keys", "conv", "s")
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


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
