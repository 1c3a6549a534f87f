"""The disk bench reads what it says it reads, and refuses what it cannot read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flashmoe.bench import disk
from flashmoe.bench.disk import HEADER, Case, Result, cases, measure, row
from flashmoe.errors import UsageError

BLOCK = 8192
CASE = Case(BLOCK, depth=2, direct=False, huge_pages=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(20 * BLOCK + 5))
    return path


def test_measure_counts_whole_blocks(file: Path) -> None:
    result = measure(file, CASE, seconds=0.05)
    assert result.nbytes > 0
    assert result.nbytes % BLOCK == 0
    assert result.seconds >= 0.05


def test_no_time_is_enough_for_a_block(file: Path) -> None:
    assert measure(file, CASE, seconds=0.0).gb_per_s > 0


def test_figures() -> None:
    result = Result(CASE, nbytes=3_000_000_000, seconds=2.0, cpu_seconds=0.3, checksum_seconds=0.15)
    assert result.gb_per_s == pytest.approx(1.5)
    assert result.cpu_ms_per_gb == pytest.approx(100)
    assert row(result).split() == ["8192", "2", "buffered", "4K", "1.50", "100", "50"]
    assert len(row(result)) == len(HEADER)


def test_cases_cover_blocks_depths_and_kinds() -> None:
    assert len(set(cases([4096, 8192], [1, 2]))) == 2 * 2 * 4


@pytest.mark.parametrize("block", [0, 100, 21 * BLOCK, -4096])
def test_blocks_that_cannot_be_read(file: Path, block: int) -> None:
    with pytest.raises(UsageError, match="a multiple of 4096, at most"):
        measure(file, Case(block, 1, direct=False, huge_pages=False), seconds=0.05)


def test_a_depth_of_nothing(file: Path) -> None:
    with pytest.raises(UsageError, match="at least 1, got 0"):
        measure(file, Case(BLOCK, 0, direct=False, huge_pages=False), seconds=0.05)


def test_blocks_come_from_all_files(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(3 * BLOCK))
    places = disk._places([file, other], CASE)
    assert len(places) == 20 + 3
    assert places[20:] == [(1, 0), (1, BLOCK), (1, 2 * BLOCK)]
    assert measure([file, other], CASE, seconds=0.05).nbytes > 0


def test_checksums_cost_processor_time_of_their_own(file: Path) -> None:
    without = measure(file, CASE, seconds=0.05)
    checked = measure(file, replace(CASE, checksums=True), seconds=0.05)
    assert without.checksum_seconds == 0
    assert checked.nbytes > 0
    assert checked.checksum_seconds > 0
    assert checked.cpu_seconds > 0
