"""Windows through a model layer by layer: the very bits of the ordinary path, one read of each
expert, and a run that goes on where another ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.errors import ContextLengthError
from flashmoe.generate.hidden import HiddenStates
from flashmoe.generate.sweep import Sweep, round_to_bf16
from flashmoe.ops.base import Floats, Ints
from tests.support.packs import VOCAB, TinyPacks


def windows(count: int, tokens: int) -> Ints:
    return np.random.default_rng(3).integers(0, VOCAB, (count, tokens)).astype(np.int32)


def swept(model: Model, ids: Ints, directory: Path, key: str = "key") -> Floats:
    """Logits [N, W, vocab] of a sweep."""
    engine = model.session().engine
    hidden = len(engine.decoder.head.norm)
    with HiddenStates(directory, ids.size, hidden, key) as store:
        Sweep(engine, ids).run(store)
        h = store.read(0, ids.size)
    logits = engine.logits_of(h, engine.prefill, np.empty((len(h), VOCAB), dtype=np.float32))
    return logits.reshape(*ids.shape, -1)


@pytest.mark.parametrize("cache", [0, "60%", "all"])
def test_a_sweep_gives_the_bits_of_the_ordinary_path(
    tiny: Path, tmp_path: Path, cache: object
) -> None:
    ids = windows(5, 70)
    with flashmoe.load(tiny, cache=cache) as model:
        expected = np.stack([model.logits(window) for window in ids])
        np.testing.assert_array_equal(swept(model, ids, tmp_path), expected)


def test_each_expert_is_read_once(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    """However many chunks there are, where the cache holds a layer's experts."""
    path = tiny_packs.get("qwen3_moe")
    with flashmoe.load(path, cache="50%", prefetch="off") as model:
        model.restart_stats()
        swept(model, windows(48, 256), tmp_path)
        layers, experts = model.config.num_hidden_layers, model.config.num_experts
        assert model.stats.cache_misses == layers * experts


def test_a_sweep_goes_on_where_it_broke_off(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    ids = windows(3, 64)
    with flashmoe.load(tiny_packs.get("qwen3_moe")) as model:
        engine = model.session().engine
        hidden = len(engine.decoder.head.norm)

        def stop(done: float, layers: int) -> None:
            if done > 1.5:
                raise KeyboardInterrupt

        with (
            HiddenStates(tmp_path, ids.size, hidden, "key") as store,
            pytest.raises(KeyboardInterrupt),
        ):
            Sweep(engine, ids).run(store, stop)
        with HiddenStates(tmp_path, ids.size, hidden, "key") as store:
            assert store.done == 1
        with HiddenStates(tmp_path, ids.size, hidden, "other") as store:
            assert store.done == -1
        expected = np.stack([model.logits(window) for window in ids])
        np.testing.assert_array_equal(swept(model, ids, tmp_path), expected)


def test_windows_must_fit_the_context(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    with (
        flashmoe.load(tiny_packs.get("qwen3_moe"), context_length=32) as model,
        pytest.raises(ContextLengthError, match="at most 32 tokens"),
    ):
        swept(model, windows(1, 33), tmp_path)


def test_rounding_is_that_of_bf16() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, -3.3, 0.0], dtype=np.float32)
    round_to_bf16(x)
    np.testing.assert_array_equal(x, np.float32([1.0, 1.0, 1.015625, -3.296875, 0.0]))
