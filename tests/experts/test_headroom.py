"""What is left of memory, in a made-up system and in this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.experts.headroom import Headroom
from tests.support.memory_files import GIB, MIB, MemoryFiles


@pytest.fixture
def system(tmp_path: Path) -> MemoryFiles:
    return MemoryFiles(tmp_path)


def room(system: MemoryFiles) -> int:
    return Headroom(system.root).read()


def test_two_percent_of_the_machine_stay_free(system: MemoryFiles) -> None:
    system.memory(total=100 * GIB, available=GIB)
    assert room(system) == -GIB
    system.memory(total=100 * GIB, available=12 * GIB)
    assert room(system) == 10 * GIB


def test_a_group_keeps_a_share_of_its_limit_free(system: MemoryFiles) -> None:
    system.v1(limit=GIB, used=GIB - 50 * MIB, cached=0)
    assert room(system) == 18 * MIB
    system.v1(limit=64 * MIB, used=63 * MIB, cached=0)
    assert room(system) == -3 * MIB


def test_page_cache_is_free_unless_mapped_or_unwritten(system: MemoryFiles) -> None:
    system.v1(limit=GIB, used=GIB, cached=100 * MIB)
    assert room(system) == 68 * MIB
    system.v1(limit=GIB, used=GIB, cached=100 * MIB, mapped=40 * MIB)
    assert room(system) == 28 * MIB
    system.v1(limit=GIB, used=GIB, cached=100 * MIB, mapped=100 * MIB)
    assert room(system) == 18 * MIB  # mapped, but inactive
    system.v1(limit=GIB, used=GIB, cached=100 * MIB, dirty=30 * MIB)
    assert room(system) == 38 * MIB


def test_the_soft_limit_of_a_v2_group_counts(system: MemoryFiles) -> None:
    system.v2(limit=2 * GIB, used=GIB)
    assert room(system) == GIB - 32 * MIB
    system.v2(limit=2 * GIB, used=GIB, high=str(GIB + 50 * MIB))
    assert room(system) == 18 * MIB


def test_what_others_took_they_may_take_twice_again(system: MemoryFiles) -> None:
    system.v1(limit=GIB, used=500 * MIB, cached=0)
    headroom = Headroom(system.root)
    assert headroom.read() == 492 * MIB
    system.v1(limit=GIB, used=600 * MIB, cached=0)
    assert headroom.read() == 392 * MIB - 2 * 100 * MIB
    assert headroom.read() == 392 * MIB
    system.v1(limit=GIB, used=300 * MIB, cached=0)
    assert headroom.read() == 692 * MIB


def test_own_growth_is_not_looked_ahead(system: MemoryFiles) -> None:
    """A cache that fills takes what the budget gave it."""
    system.own(100 * MIB)
    system.v1(limit=GIB, used=300 * MIB, cached=0)
    headroom = Headroom(system.root)
    headroom.read()
    system.own(400 * MIB)
    system.v1(limit=GIB, used=600 * MIB, cached=0)
    assert headroom.read() == 392 * MIB


def test_this_machine_can_be_read() -> None:
    assert Headroom(Path("/")).read() < 2**60
