"""The disk bench reads what it says it reads, and refuses what it cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.bench.disk import HEADER, Case, Result, cases, main, measure, row
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


def test_figures() -> None:
    result = Result(CASE, nbytes=3_000_000_000, seconds=2.0, cpu_seconds=0.3)
    assert result.gb_per_s == pytest.approx(1.5)
    assert result.cpu_ms_per_gb == pytest.approx(100)
    assert row(result).split() == ["8192", "2", "buffered", "4K", "1.50", "100"]
    assert len(row(result)) == len(HEADER)


def test_cases_cover_blocks_depths_and_kinds() -> None:
    assert len(set(cases([4096, 8192], [1, 2]))) == 2 * 2 * 3


@pytest.mark.parametrize("block", [0, 100, 21 * BLOCK, -4096])
def test_blocks_that_cannot_be_read(file: Path, block: int) -> None:
    with pytest.raises(UsageError, match="a multiple of 4096, at most"):
        measure(file, Case(block, 1, direct=False, huge_pages=False), seconds=0.05)


def test_a_depth_of_nothing(file: Path) -> None:
    with pytest.raises(UsageError, match="at least 1, got 0"):
        measure(file, Case(BLOCK, 0, direct=False, huge_pages=False), seconds=0.05)


def test_main_prints_a_table(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(file), "--block", str(BLOCK), "--depth", "1", "--seconds", "0.05"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == HEADER
    assert len(lines) == 4


def test_main_names_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 1
    assert "absent: No such file" in capsys.readouterr().err


def test_main_exits_2_for_bad_usage(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--block", "100"]) == 2
    assert "cannot read such blocks" in capsys.readouterr().err
