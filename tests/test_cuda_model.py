"""Whole models on a card: against the NumPy backend, and the same whatever tier experts are in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import flashmoe
from flashmoe.api import Model
from flashmoe.errors import MemoryBudgetError
from flashmoe.experts.budget import Budget
from flashmoe.experts.tiers import HostRates
from flashmoe.models.registry import CARD_FAMILIES, FAMILIES
from flashmoe.ops import reference_linear
from flashmoe.ops.base import Floats, Ops
from flashmoe.ops.reference import ReferenceOps
from flashmoe.settings import EngineSettings
from tests.support import oracle
from tests.support.card import card
from tests.support.packs import VOCAB, TinyPacks, load_with, some_ids
from tests.support.tolerances import LOGITS_CUDA, LOGITS_HYBRID

pytestmark = pytest.mark.cuda

# Longer than what is multiplied row by row, so that prefill runs on tensor cores.
PROMPT = some_ids(40)
STEPS = (3, 5, 7)
GB = 1 << 30


def run(
    model: Model,
    after_prompt: Callable[[], None] = lambda: None,
    given: Sequence[int] = PROMPT,
) -> list[Floats]:
    """Logits after the prompt and after each step."""
    session = model.session()
    prompt = session.feed(given).copy()
    after_prompt()
    return [prompt, *(session.step(id).copy() for id in STEPS)]


class CardProducts:
    """reference_linear.linear with the rounding of a card: in prompts, quantised weights and their
    inputs become float16, a row of inputs at a power-of-two scale; the head reads few rows."""

    def __init__(self) -> None:
        self.in_prompt = True

    def steps_follow(self) -> None:
        self.in_prompt = False

    def linear(self, x: Floats, w: Floats, group: int) -> NDArray[np.float64]:
        inputs, weights = x.astype(np.float64), w.astype(np.float64)
        if group and self.in_prompt and len(w) != VOCAB:
            largest = np.abs(inputs).max(axis=1, keepdims=True, initial=1e-30)
            scale = 2.0 ** np.floor(np.log2(largest))
            inputs = (inputs / scale).astype(np.float16) * scale
            weights = weights.astype(np.float16).astype(np.float64)
        product: NDArray[np.float64] = inputs @ weights.T
        return product


def reference(threads: int, isa: str) -> Ops:
    return ReferenceOps()


def open_on_card(
    path: Path, slots: int | None = None, ram: int | None = None, **settings: Any
) -> Model:
    """On the device of the tests; slots, ram: fewer expert slots on the card, in RAM than fit."""
    device = card()
    import flashmoe.cuda as cuda

    real: Callable[..., tuple[int, Budget]] = cuda.card_budget
    chosen = EngineSettings(**{"vram": 8 * GB, "context_length": 64, "device": "cuda", **settings})
    with pytest.MonkeyPatch.context() as patch:
        if slots is not None:
            patch.setattr(cuda, "card_budget", lambda *given: with_slots(*real(*given), slots))
        if ram is not None:
            patch.setattr(cuda, "_ram_slots", lambda *given: ram)
        return Model(cuda.load_on_card(path, chosen, device))


def with_slots(chunk: int, budget: Budget, slots: int) -> tuple[int, Budget]:
    return chunk, dataclasses.replace(budget, slots=slots)


def tiers_of(model: Model) -> Any:
    """flashmoe.cuda.CardExperts."""
    return model._loaded.cache


@pytest.mark.parametrize("formats", [("bf16", "bf16"), ("q4", "q8")], ids="-".join)
@pytest.mark.parametrize("family", sorted(CARD_FAMILIES))
def test_logits(
    tiny_packs: TinyPacks, family: str, formats: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_packs.get(family, *formats)
    with open_on_card(path) as model:
        got = run(model)
    products = CardProducts()
    monkeypatch.setattr(reference_linear, "linear", products.linear)
    with load_with(path, make_ops=reference, context_length=64) as model:
        expected = run(model, products.steps_follow)
    bound = LOGITS_CUDA["bf16" if formats[0] == "bf16" else "quantised"]
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(ours - theirs).max() <= bound


@pytest.mark.parametrize(
    ("family", "experts", "dense"),
    [("gpt_oss", "mxfp4", "bf16"), ("qwen3_moe", "q2", "q8"), ("deepseek_v3", "q3", "q8")],
)
def test_formats_of_experts_alone(
    tiny_packs: TinyPacks,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    experts: str,
    dense: str,
) -> None:
    path = tiny_packs.get(family, experts, dense)
    with open_on_card(path) as model:
        got = run(model)
    products = CardProducts()
    monkeypatch.setattr(reference_linear, "linear", products.linear)
    with load_with(path, make_ops=reference, context_length=64) as model:
        expected = run(model, products.steps_follow)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(ours - theirs).max() <= LOGITS_CUDA["quantised"]


def test_a_prompt_with_whole_blocks_of_the_delta_rule(tiny_packs: TinyPacks) -> None:
    path, prompt = tiny_packs.get("qwen3_next", "bf16", "bf16"), some_ids(70)
    with open_on_card(path, context_length=96) as model:
        got = run(model, given=prompt)
    with load_with(path, make_ops=reference, context_length=96) as model:
        expected = run(model, given=prompt)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(ours - theirs).max() <= LOGITS_CUDA["bf16"]


@pytest.mark.oracle
@pytest.mark.parametrize("family", [f for f in oracle.FAMILIES if FAMILIES[f] in CARD_FAMILIES])
def test_logits_equal_the_oracle(family: str, tmp_path: Path) -> None:
    tiny, ids = oracle.tiny_model(family), np.array(PROMPT, dtype=np.int32)
    source = oracle.save(tiny, tmp_path / "source", fused=True)
    flashmoe.pack(source, tmp_path / "packed", experts="bf16", dense="bf16")
    with open_on_card(tmp_path / "packed") as model:
        got = run(model)
    expected = oracle.logits(tiny, np.concatenate([ids, np.array(STEPS, dtype=np.int32)]))
    for ours, theirs in zip(got, expected[len(ids) - 1 :], strict=True):
        assert np.abs(ours - theirs).max() <= LOGITS_CUDA["bf16"]


# Every expert, the card planning by itself, the host planning in one wave and in several; the disk
# involved, with and without reading ahead.
@pytest.mark.parametrize(
    ("slots", "ram", "prefetch"),
    [(40, None, "on"), (20, None, "on"), (5, None, "on"), (8, 24, "on"), (8, 24, "off")],
)
@pytest.mark.parametrize("family", ["qwen3_5_moe", "gpt_oss", "deepseek_v3"])
def test_the_tier_of_an_expert_does_not_matter(
    tiny_packs: TinyPacks, family: str, slots: int, ram: int | None, prefetch: str
) -> None:
    path = tiny_packs.get(family)
    with open_on_card(path) as model:
        expected = run(model)
    with open_on_card(path, slots=slots, ram=ram, prefetch=prefetch) as model:
        got = run(model)
        stats = tiers_of(model).ram.stats
    assert prefetch == "on" or not stats.prefetched
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("ram", [None, 24])
def test_what_the_cpu_computes_differs_by_rounding(
    tiny_packs: TinyPacks, monkeypatch: pytest.MonkeyPatch, ram: int | None
) -> None:
    card()
    from flashmoe.experts import hybrid

    path = tiny_packs.get("qwen3_moe")
    with open_on_card(path, slots=8, ram=ram) as model:
        expected = run(model)
    # Of two or more that miss, one is computed by the CPU.
    monkeypatch.setattr(hybrid, "HostRates", lambda *measured: HostRates(1.0, 1.0, 0.0))
    with open_on_card(path, slots=8, ram=ram, hybrid=True) as model:
        got = run(model)
        tiers = tiers_of(model).experts.stats
        assert "results differ by rounding" in model.stats.hybrid
    assert 0 < tiers.on_host <= tiers.ram_hits
    np.testing.assert_array_equal(got[0], expected[0])  # prompts are the card's own
    for ours, theirs in zip(got[1:], expected[1:], strict=True):
        assert 0 < np.abs(ours - theirs).max() <= LOGITS_HYBRID


@pytest.mark.parametrize(("slots", "why"), [(40, "on the card"), (20, "card alone is faster")])
def test_where_the_cpu_is_no_help_hybrid_changes_no_bit(
    tiny_packs: TinyPacks, monkeypatch: pytest.MonkeyPatch, slots: int, why: str
) -> None:
    card()
    from flashmoe.experts import hybrid

    path = tiny_packs.get("qwen3_moe")
    with open_on_card(path, slots=slots) as model:
        expected = run(model)
    monkeypatch.setattr(hybrid, "HostRates", lambda *measured: HostRates(1e-6, 1.0, 0.0))
    with open_on_card(path, slots=slots, hybrid=True) as model:
        got = run(model)
        assert why in model.stats.hybrid
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_all_that_is_on_the_card_stays_below_the_limit(tiny_packs: TinyPacks) -> None:
    device = card()
    if device.type != "cuda":
        pytest.skip("CUDA TESTS SKIPPED: no GPU")
    import torch

    limit = 3 * GB
    path = tiny_packs.get("qwen3_moe")
    with open_on_card(path, vram=limit) as model:
        run(model)
        free, total = torch.cuda.mem_get_info()
        assert total - free <= limit  # nobody else is on a card that tests run on
        assert torch.cuda.max_memory_reserved() <= limit


def test_running_out_at_load_is_a_memory_budget_error(
    tiny_packs: TinyPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    card()
    import torch

    import flashmoe.cuda as cuda

    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "load_weights", full)
    with pytest.raises(MemoryBudgetError, match="this model and a chunk of a prompt"):
        open_on_card(tiny_packs.get("qwen3_moe"))


@pytest.mark.parametrize("reserved", [40, 41])
def test_another_sequence_leaves_room_for_a_prompt(
    monkeypatch: pytest.MonkeyPatch, reserved: int
) -> None:
    card()
    import torch

    from flashmoe.generate.graphed import GraphedEngine

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    engine = object.__new__(GraphedEngine)
    engine.tensor_bytes, engine.pass_bytes = 100, 60
    refused = pytest.raises(MemoryBudgetError, match="another sequence beside a chunk")
    with refused if reserved > 40 else nullcontext():
        engine._check_room()
