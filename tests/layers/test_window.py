"""Layers with a window in whole models: rings that wrap, and passes larger than a ring."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.layers.state import KvCache, cache_positions
from flashmoe.ops.parts import WINDOW_PIECE
from tests.support.packs import SIZES, lively, some_ids
from tests.support.tiny_checkpoints import write_checkpoint

TOKENS = 2 * WINDOW_PIECE + 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    root = tmp_path_factory.mktemp("window")
    source = write_checkpoint(
        root / "source", "gpt_oss", change=lively, max_position_embeddings=4096, **SIZES
    )
    (source / "tokenizer.json").unlink()
    flashmoe.pack(source, root / "pack", group=32)
    with flashmoe.load(root / "pack", context_length=TOKENS + 1) as model:
        yield model


def test_a_pass_larger_than_a_ring_changes_no_bit(model: Model) -> None:
    ids = some_ids(TOKENS)
    whole = model.session().feed_all(ids, chunk=TOKENS)
    for chunk in (64, WINDOW_PIECE, WINDOW_PIECE + 1):
        np.testing.assert_array_equal(model.session().feed_all(ids, chunk=chunk), whole)
    session = model.session()
    session.feed(ids[:-3])
    steps = np.array([session.step(id).copy() for id in ids[-3:]])
    np.testing.assert_array_equal(steps, whole[-3:])


def test_the_ring_stays_small(model: Model) -> None:
    caches = model.session().engine.new_state().layers
    assert all(isinstance(cache, KvCache) for cache in caches)
    positions = [cache.k.shape[1] for cache in caches if isinstance(cache, KvCache)]
    window = model.config.sliding_window
    assert positions == [cache_positions(TOKENS + 1, window), TOKENS + 1]
    assert positions[0] < 2 * WINDOW_PIECE
