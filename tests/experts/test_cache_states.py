"""Any order of steps, guesses and new sizes: right bytes, and the same experts resident as without
guesses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flashmoe.experts.cache import ExpertCache
from tests.experts.support import RECORD, TaggedSource, arena, consume
from tests.support.fake_reader import FakeReader

LAYERS, EXPERTS, CAPACITY, STAGING = 3, 8, 12, 3

layers = st.integers(0, LAYERS - 1)
experts = st.lists(st.integers(0, EXPERTS - 1), unique=True, max_size=EXPERTS)


@pytest.fixture(scope="module", autouse=True)
def source() -> Iterator[None]:
    with TemporaryDirectory() as folder:
        CacheStates.source = TaggedSource(Path(folder), LAYERS, EXPERTS).write()
        yield


class CacheStates(RuleBasedStateMachine):
    """One cache is told guesses, the other none; resizes come while guesses are in flight."""

    source: TaggedSource

    def __init__(self) -> None:
        super().__init__()
        self.memory = arena(CAPACITY + STAGING)
        reader = FakeReader(1)
        self.cache = ExpertCache(
            self.source, self.memory, reader, slot_bytes=RECORD, staging=STAGING
        )
        self.plain = ExpertCache(self.source, arena(CAPACITY), FakeReader(2), slot_bytes=RECORD)

    @rule(layer=layers, wanted=experts)
    def begin(self, layer: int, wanted: list[int]) -> None:
        expected = [self.source.record(layer, expert) for expert in wanted]
        assert consume(self.cache.begin(layer, wanted), len(wanted)) == expected
        consume(self.plain.begin(layer, wanted), len(wanted))

    @rule(layer=layers, wanted=experts, taken=st.integers(0, 2))
    def begin_and_leave(self, layer: int, wanted: list[int], taken: int) -> None:
        """A ticket of which only some groups are taken; then both are made alike again."""
        with self.cache.begin(layer, wanted) as ticket:
            for _, _ in zip(range(taken), ticket.batches(), strict=False):
                pass
        for cache in (self.cache, self.plain):
            cache.clear()

    @rule(layer=layers, guessed=experts)
    def guess(self, layer: int, guessed: list[int]) -> None:
        self.cache.guess(layer, guessed)

    @rule(layer=layers, wanted=experts.filter(bool))
    def find(self, layer: int, wanted: list[int]) -> None:
        ids = np.array(wanted, dtype=np.int32)
        found, plain = self.cache.find(layer, ids), self.plain.find(layer, ids)
        assert (found is None) == (plain is None)
        if found is not None:
            records = [ctypes.string_at(address, RECORD) for address in found]
            assert records == [self.source.record(layer, expert) for expert in wanted]

    @rule(slots=st.integers(1, CAPACITY))
    def resize(self, slots: int) -> None:
        before = self.cache.slots
        self.cache.resize(slots)
        self.plain.resize(slots)
        if slots < before:
            behind = (slots + STAGING) * RECORD
            assert not self.memory.view(behind, self.memory.nbytes - behind).any()

    @rule()
    def end_step(self) -> None:
        self.cache.end_step()
        self.plain.end_step()

    @invariant()
    def the_same_are_resident(self) -> None:
        assert self.cache.resident() == self.plain.resident()
        assert self.cache.slots == self.plain.slots

    @invariant()
    def every_resident_record_is_whole(self) -> None:
        """Looked at behind the cache's back: `find` would count as a use."""
        for layer, expert in self.cache.resident():
            found = self.cache._book.find(layer, np.array([expert], dtype=np.int32))
            assert found is not None
            assert ctypes.string_at(found[0], RECORD) == self.source.record(layer, expert)

    def teardown(self) -> None:
        self.cache.close()
        self.plain.close()


TestCacheStates = CacheStates.TestCase
TestCacheStates.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
