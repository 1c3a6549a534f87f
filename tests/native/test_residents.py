"""The native table of resident experts beside a dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe import _native

LAYERS, EXPERTS, K = 3, 6, 2
puts = st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1), st.integers(0, 3))
wanted = st.lists(st.integers(0, EXPERTS - 1), min_size=K, max_size=K)
lookups = st.tuples(st.integers(0, LAYERS - 1), wanted)


@given(st.lists(puts | lookups))
def test_it_finds_what_was_put_and_notes_uses_in_order(steps: list[Any]) -> None:
    table, there, uses = _native.ResidentTable(EXPERTS), dict[tuple[int, int], int](), []
    ids, found = np.zeros((1, K), dtype=np.int32), np.zeros(K, dtype=np.uint64)
    lookup = _native.Lookup(ids, found)
    for layer, *rest in steps:
        if len(rest) == 2:
            expert, address = rest
            table.put(layer, expert, address)
            there[layer, expert] = address
            continue
        keys = [(layer, expert) for expert in rest[0]]
        ids[0] = rest[0]
        expected = [there.get(key, 0) for key in keys]
        assert table.find(layer, lookup) == (0 not in expected)
        if 0 not in expected:
            assert found.tolist() == expected
            uses += keys
    assert table.uses == len(uses)
    assert (table.take_hits(), table.take_hits()) == (len(uses), 0)
    assert table.take_uses() == uses
    assert table.take_uses() == []


@pytest.mark.parametrize("layer", [-1, 0, 7])
@pytest.mark.parametrize("expert", [-1, EXPERTS])
def test_what_no_layer_has_is_not_found(layer: int, expert: int) -> None:
    table = _native.ResidentTable(EXPERTS)
    table.put(0, 1, 64)
    ids = np.array([[1, expert]], dtype=np.int32)
    assert not table.find(layer, _native.Lookup(ids, np.zeros(2, dtype=np.uint64)))
    assert table.uses == 0


def test_it_refuses_experts_that_no_layer_has() -> None:
    table = _native.ResidentTable(EXPERTS)
    for layer, expert in ((0, EXPERTS), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match=r"\[ResidentTable\] expert: expected 0 to 5"):
            table.put(layer, expert, 64)


def test_a_lookup_needs_room_for_every_address() -> None:
    with pytest.raises(ValueError, match=r"\[Lookup\] found: expected"):
        _native.Lookup(np.zeros((1, K), dtype=np.int32), np.zeros(K + 1, dtype=np.uint64))
