"""The native layer parts beside the same parts composed of primitives: equal to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe import _native
from flashmoe.api import Model
from flashmoe.generate.engine import Engine
from flashmoe.layers.moe import SparseMoe
from flashmoe.layers.state import Batch, Segment, SequenceState
from flashmoe.ops.base import Floats, Ints, Ops
from flashmoe.ops.composed import ComposedParts
from flashmoe.ops.cpu import CpuOps
from flashmoe.ops.parts import Routed
from tests.support.packs import TinyPacks, assert_same_bits, load_with, some_ids, transcript

PROMPT = some_ids(150)  # two blocks of the delta rule and a rest
ISAS = pytest.mark.parametrize("isa", _native.available_isas())
FORMATS = pytest.mark.parametrize("formats", [("q4", "q8"), ("bf16", "bf16"), ("q8", "q4")])


class ComposedCpuOps(ComposedParts, CpuOps):
    """The primitives of CpuOps with every part composed of them."""


@ISAS
@FORMATS
@pytest.mark.parametrize("threads", [1, 3])
def test_a_whole_model_is_the_same(
    tiny_packs: TinyPacks, family: str, formats: tuple[str, str], isa: str, threads: int
) -> None:
    pack = tiny_packs.get(family, *formats)
    found = []
    for make_ops in (ComposedCpuOps, CpuOps):
        with load_with(pack, make_ops=make_ops, isa=isa, threads=threads) as model:
            found.append(transcript(model, PROMPT, 6))
    assert_same_bits(found[1], found[0])


def segments(states: list[SequenceState], counts: list[int], ids: list[int]) -> Batch:
    """The next tokens of several sequences."""
    ends = np.cumsum(counts).tolist()
    begins = [0, *ends[:-1]]
    spans = tuple(Segment(*of) for of in zip(states, begins, ends, strict=True))
    return Batch(np.array(ids, dtype=np.int32), spans)


def run_together(model: Model, passes: list[list[int]]) -> list[Floats]:
    """Three sequences in one batch per pass; passes: tokens of each in each pass."""
    engine: Engine = model.session().engine
    states, found = [engine.new_state() for _ in range(3)], []
    for counts in passes:
        batch = segments(states, counts, some_ids(sum(counts), seed=len(found)))
        found.append(engine.all_logits(batch, engine.prefill))
    return found


def test_several_sequences_in_one_pass_are_the_same(tiny: Path) -> None:
    passes = [[70, 1, 3], [1, 1, 1], [2, 130, 1]]
    with load_with(tiny, make_ops=ComposedCpuOps) as model:
        expected = run_together(model, passes)
    with load_with(tiny) as model:
        got = run_together(model, passes)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_token_that_misses_nothing_is_one_call_per_layer(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same bits and the same hits as where every layer's experts are asked for."""
    found = []
    with load_with(tiny) as model:
        experts = model.session().engine.experts
        transcript(model, PROMPT, 6)  # from here on all experts are resident
        for name in ("residents", "begin"):
            with monkeypatch.context() as patch:
                session, before = model.session(), model.stats
                session.feed(PROMPT)
                fed = model.stats
                patch.setattr(experts, name, None)
                steps = [session.step(id).copy() for id in some_ids(6, seed=1)]
                found.append((steps, model.stats.cache_hits - fed.cache_hits))
                assert model.stats.cache_misses == before.cache_misses
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] > 0


class Guessing:
    """Routed experts that want to know the next layer's, and note what they are told."""

    residents = None
    wants_ahead = True

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.routed: list[tuple[int, Ints]] = []
        self.guesses: list[tuple[int, Ints]] = []

    def begin(self, layer: int, ids: Ints, ahead: tuple[int, Ints] | None = None) -> Any:
        self.routed.append((layer, ids.copy()))
        if ahead is not None:
            self.guesses.append((ahead[0], ahead[1].copy()))
        return self._inner.begin(layer, ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def guess(pack: Path, make_ops: Any, ids: list[int]) -> tuple[Guessing, Floats]:
    with load_with(pack, make_ops=make_ops) as model:
        session = model.session()
        guessing = Guessing(session.engine.experts)
        session.engine.experts = guessing
        return guessing, session.feed(ids)


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_look_ahead_is_the_same_and_changes_nothing(tiny: Path, tokens: int) -> None:
    ids = PROMPT[:tokens]
    composed, expected = guess(tiny, ComposedCpuOps, ids)
    native, got = guess(tiny, CpuOps, ids)
    with load_with(tiny) as model:
        np.testing.assert_array_equal(got, model.session().feed(ids))
    np.testing.assert_array_equal(got, expected)
    layers = [layer for layer, _ in native.routed]
    assert [layer for layer, _ in native.guesses] == layers[1:]
    for one, other in zip(native.guesses, composed.guesses, strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])


def test_a_look_ahead_asks_the_router_that_it_names(tiny: Path) -> None:
    """Of the layer itself, a look-ahead is its routing."""
    with load_with(tiny) as model:
        engine = model.session().engine
        ops: Ops = engine.ops
        for layer in engine.decoder.layers:
            if not isinstance(layer.mlp, SparseMoe):
                continue
            h = np.random.default_rng(0).standard_normal((3, model.config.hidden_size))
            routed: Routed = ops.norm_and_route(
                h.astype(np.float32), layer.mlp.router, layer.mlp.router
            )
            assert routed.ids_ahead is not None
            np.testing.assert_array_equal(routed.ids_ahead, routed.ids)


def test_a_closed_engine_holds_no_weights(tiny: Path) -> None:
    with load_with(tiny) as model:
        ops = model.session().engine.ops
        model.logits([1, 2])
    assert ops._bound == ops._token_moe == {}  # type: ignore[attr-defined]
