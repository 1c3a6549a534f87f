"""The arena: size, alignment, page kind, lifetime, refusal."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import numpy as np
import pytest

from flashmoe._native import Arena

HUGE = 2 << 20


@pytest.mark.parametrize("nbytes", [1, 4096, HUGE, HUGE + 4096, 65 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_size_alignment_and_content(nbytes: int, threads: int) -> None:
    arena = Arena(nbytes, threads=threads)
    assert arena.nbytes == -(-nbytes // 4096) * 4096
    assert arena.address % HUGE == 0
    view = arena.view(0, arena.nbytes)
    assert view.dtype == np.uint8
    assert not view.any()
    view[-1] = 7
    assert arena.view(arena.nbytes - 1, 1)[0] == 7


def test_memory_is_there_before_its_first_use() -> None:
    arena = Arena(8 * HUGE, huge_pages=False)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arena.view(0, arena.nbytes)[::4096] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 8 * HUGE / 4096 / 10


def test_plain_pages_on_request() -> None:
    arena = Arena(4 * HUGE, huge_pages=False)
    assert not arena.huge
    assert arena.huge_bytes() == 0


def test_huge_pages_are_reported_as_the_kernel_sees_them() -> None:
    arena = Arena(4 * HUGE)
    assert arena.huge_bytes() % HUGE == 0
    if not arena.huge:
        assert arena.huge_bytes() == 0


def test_a_view_keeps_the_arena_alive() -> None:
    view = Arena(HUGE).view(4096, 4096)
    view[:] = 5
    gc.collect()
    others = [Arena(HUGE) for _ in range(4)]
    assert (view == 5).all()
    assert len(others) == 4


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(4097, 0), (0, 4097), (4096, 1), (2**64 - 1, 2), (1, 2**64 - 1)]
)
def test_a_view_outside_is_refused(offset: int, nbytes: int) -> None:
    with pytest.raises(ValueError, match=r"\[Arena.view\] offset \+ nbytes: expected at most 4096"):
        Arena(4096).view(offset, nbytes)


@pytest.mark.parametrize("nbytes", [1 << 60, 2**64 - 1, 2**64 - 4096])
def test_more_than_there_is(nbytes: int) -> None:
    with pytest.raises(MemoryError):
        Arena(nbytes)


def test_senseless_arguments() -> None:
    with pytest.raises(ValueError, match="nbytes: expected at least 1"):
        Arena(0)
    with pytest.raises(ValueError, match="threads: expected at least 0"):
        Arena(4096, threads=-1)
    with pytest.raises(ValueError, match="threads: expected at least 1"):
        Arena(4096).populate(0, 4096, threads=0)
    for method in ("populate", "release"):
        with pytest.raises(ValueError, match=method):
            getattr(Arena(4096), method)(4096, 1)


def resident_kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def test_parts_come_and_go() -> None:
    """Nothing is resident before it is asked for; what is released is gone and can come again."""
    size, slack = 32 << 20, 2048
    before = resident_kilobytes("VmRSS")
    arena = Arena(size, threads=0)
    assert resident_kilobytes("VmRSS") - before < slack
    arena.populate(0, size, threads=2)
    full = resident_kilobytes("VmRSS")
    assert full - before > size // 1024 - slack
    arena.view(0, size)[:] = 9
    arena.release(size // 2, size // 2)
    assert full - resident_kilobytes("VmRSS") > size // 2048 - slack
    assert (arena.view(0, size // 2) == 9).all()
    assert not arena.view(size // 2, size // 2).any()


def test_populating_keeps_what_is_there_and_release_keeps_what_is_around() -> None:
    arena = Arena(4 * 4096, huge_pages=False)
    arena.view(0, arena.nbytes)[:] = 3
    arena.populate(100, 9000)
    arena.release(100, 4095 + 4096)  # of these only the second page is whole
    content = arena.view(0, arena.nbytes).reshape(4, 4096)
    assert [set(page.tolist()) for page in content] == [{3}, {0}, {3}, {3}]


def test_locked_memory_is_locked() -> None:
    arena = Arena(1 << 20)
    before = resident_kilobytes("VmLck")
    arena.lock()
    assert resident_kilobytes("VmLck") - before == 1024
