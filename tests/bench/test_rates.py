from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.bench import rates
from flashmoe.bench.rates import RateMeter, Rates


def test_the_slower_of_disk_and_memory_bounds() -> None:
    measured = Rates(disk=[1e9, 2e9, 9e9], memory=[10e9, 20e9])
    assert measured.seconds(missed_bytes=4e9, touched_bytes=15e9) == pytest.approx(2.0)
    assert measured.seconds(missed_bytes=0, touched_bytes=15e9) == pytest.approx(1.0)


def test_the_row_has_medians_and_samples() -> None:
    row = Rates(disk=[1.0, 2.0, 9.0], memory=[10.0, 20.0]).row()
    assert (row["disk_bytes_per_s"], row["memory_bytes_per_s"]) == (2.0, 15.0)
    assert row["disk_samples"] == [1.0, 2.0, 9.0]


def test_samples_are_taken_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MEMORY_BYTES", 1 << 20)
    file = tmp_path / "experts"
    file.write_bytes(bytes(64 << 10))
    meter = RateMeter([file], record_bytes=8192, readers=2, threads=1, seconds=0.01)
    meter.sample()
    meter.sample()
    assert len(meter.rates.disk) == len(meter.rates.memory) == 2
    assert min(meter.rates.disk + meter.rates.memory) > 0
