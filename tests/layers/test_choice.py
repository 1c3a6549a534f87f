"""Lossy rules of routing: with nothing on they change no bit; what each of them leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flashmoe
from flashmoe.errors import UsageError
from flashmoe.layers.choice import kept, preferred
from flashmoe.routing import RoutingOptions
from tests.support.packs import TinyPacks, assert_same_bits, some_ids, transcript

WEIGHTS = np.float32([[0.4, 0.3, 0.2, 0.1]])
SHARES = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8)


def test_rules_that_leave_all_change_no_bit(tiny: Path) -> None:
    """They go the long way round: routing, choice and scale in Python."""
    with flashmoe.load(tiny) as model, flashmoe.load(tiny) as same:
        expected = transcript(model, some_ids(70), 5)
        decoder = same.session().engine.decoder
        ruled = decoder.with_rules(
            RoutingOptions(ratio=1e-30), lambda layer, ids: np.ones(len(ids), dtype=bool)
        )
        same.session().engine.decoder = ruled
        assert_same_bits(transcript(same, some_ids(70), 5), expected)


@pytest.mark.parametrize("rules", ["mass=0.5", "ratio=0.9", "k=2,mass=0.9"])
def test_a_prompt_is_what_its_tokens_are(tiny_packs: TinyPacks, rules: str) -> None:
    """Rules that do not look at the cache: the same in one piece, token by token, in any cache."""
    path, ids = tiny_packs.get("qwen3_moe"), some_ids(20)
    with flashmoe.load(path, routing=rules) as model:
        whole = model.logits(ids)
    with flashmoe.load(path, routing=rules, cache=0) as model:
        session = model.session()
        np.testing.assert_array_equal(whole, [session.step(id).copy() for id in ids])
        assert rules.replace("k=2,", "") in model.stats.lossy


def test_fewer_experts_by_layer_are_those_of_k(tiny_packs: TinyPacks) -> None:
    path, ids = tiny_packs.get("qwen3_moe"), some_ids(20)
    with flashmoe.load(path, experts_per_token=2) as model:
        expected, layers = model.logits(ids), model.config.num_hidden_layers
    with flashmoe.load(path, routing="per_layer=" + "/".join(["2"] * layers)) as model:
        np.testing.assert_array_equal(model.logits(ids), expected)
    with pytest.raises(UsageError, match="another number of layers"):
        flashmoe.load(path, routing="per_layer=2")


def test_rules_on_the_cache_read_less(tiny_packs: TinyPacks) -> None:
    def misses(routing: str) -> int:
        path = tiny_packs.get("qwen3_moe")
        with flashmoe.load(path, routing=routing, cache="60%", prefetch="off") as model:
            session = model.session()
            for id in some_ids(60):
                session.step(id)
            return model.stats.cache_misses

    assert misses("margin=0.9,sacred=1") < misses("")
    assert misses("skip=1.0") < misses("")


def test_what_is_in_memory_comes_within_the_margin() -> None:
    weights = np.float32([0.4, 0.2, 0.1, 0.06, 0.04])
    resident = np.array([False, False, False, True, True])
    half = RoutingOptions(margin=0.5, sacred=1)
    assert preferred(weights, resident, 3, half).tolist() == [0, 1, 3]
    assert preferred(weights, resident, 3, RoutingOptions(margin=0.3)).tolist() == [0, 1, 2]
    assert preferred(weights, resident, 3, RoutingOptions(margin=0.9, sacred=1)).tolist() == [
        0,
        3,
        4,
    ]
    assert preferred(weights, resident, 3, RoutingOptions(margin=0.9, sacred=3)).tolist() == [
        0,
        1,
        2,
    ]


def test_each_rule_leaves_what_it_says() -> None:
    def left(options: RoutingOptions, resident: np.ndarray | None = None, limit: int = 4) -> str:
        return "".join("x" if k else "." for k in kept(WEIGHTS, resident, options, limit)[0])

    assert left(RoutingOptions()) == "xxxx"
    assert left(RoutingOptions(mass=0.65)) == "xx.."
    assert left(RoutingOptions(mass=0.0)) == "x..."
    assert left(RoutingOptions(ratio=0.45)) == "xxx."
    assert left(RoutingOptions(), limit=2) == "xx.."
    cold = np.array([False, True, False, False])
    assert left(RoutingOptions(skip=1.0), cold) == "xx.."
    assert left(RoutingOptions(skip=0.5), cold) == "xxx."


@given(SHARES, st.floats(0.1, 1.0))
def test_what_is_left_has_the_mass(values: list[float], mass: float) -> None:
    weights = np.float32(sorted(values, reverse=True))[None]
    keep = kept(weights, None, RoutingOptions(mass=mass), weights.size)[0]
    share = weights[0] / weights.sum()
    assert share[keep].sum() >= mass - 1e-5
    assert keep[: keep.sum()].all(), "the likeliest are kept"


def test_rules_are_read_as_they_are_written() -> None:
    text = "k=6,per_layer=4/4,mass=0.9,margin=0.5,sacred=1"
    assert RoutingOptions.parse(text).lossy == text
    assert RoutingOptions.parse("").lossy == ""
    assert not RoutingOptions.parse("k=4").changes_layers
    for wrong in ("mas=0.9", "mass=x", "mass=2", "k=0"):
        with pytest.raises(UsageError, match="routing"):
            RoutingOptions.parse(wrong)
