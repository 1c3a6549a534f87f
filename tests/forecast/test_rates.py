"""Rates of disk and memory: lines of this machine, else measured, or assumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flashmoe.bench.machine import machine_facts
from flashmoe.errors import UsageError
from flashmoe.forecast import rates as module
from flashmoe.forecast.rates import ASSUMED_DISK, Known, MachineRates, machine_rates
from flashmoe.forecast.recorded import disk_rate, memory_rate, record_folders, recorded_rows
from flashmoe.store.packed import PackedModel
from tests.support.packs import TinyPacks

MACHINE = {"cpu": "x", "cores": 2, "memory_bytes": 1000, "disk": {"device": "vda"}}


def row(day: str, machine: dict[str, Any] = MACHINE, **rates: float) -> dict[str, Any]:
    return {"time": f"{day}T00:00:00", "machine": machine, "figures": {"rates": rates}}


def test_the_latest_line_of_this_disk_counts() -> None:
    rows = [
        row("2026-01-01", disk_bytes_per_s=1e9, block_bytes=1000),
        row("2026-01-02", disk_bytes_per_s=2e9, block_bytes=1000),
        row("2026-01-03", {**MACHINE, "disk": {}}, disk_bytes_per_s=3e9, block_bytes=1000),
        row("2026-01-04", {**MACHINE, "cores": 4}, disk_bytes_per_s=4e9, block_bytes=1000),
        row("2026-01-05", disk_bytes_per_s=5e9, block_bytes=9000),
    ]
    found = disk_rate(rows, MACHINE, 1500)
    assert found is not None
    assert (found.value, found.day) == (2e9, "2026-01-02")
    assert disk_rate(rows, MACHINE, 100) is None


def test_memory_may_be_of_another_disk_but_not_of_another_machine() -> None:
    rows = [
        row("2026-01-01", {**MACHINE, "disk": None}, memory_bytes_per_s=4e10),
        row("2026-01-02", {**MACHINE, "memory_bytes": 2000}, memory_bytes_per_s=5e10),
    ]
    found = memory_rate(rows, {**MACHINE, "memory_bytes": 1001})
    assert found is not None
    assert found.value == 4e10


def test_the_fastest_case_of_bench_disk_that_reads_past_the_page_cache() -> None:
    cases = [
        {"block_bytes": 1000, "direct": direct, "bytes_per_s": rate}
        for direct, rate in ((True, 1e9), (True, 2e9), (False, 9e9))
    ]
    line = {"time": "2026-01-01", "machine": MACHINE, "figures": {"cases": cases}}
    found = disk_rate([line], MACHINE, 1000)
    assert found is not None
    assert found.value == 2e9


@pytest.mark.parametrize("line", [{}, {"machine": None, "figures": 3}, {"machine": MACHINE}])
def test_lines_that_say_nothing_are_passed_over(line: dict[str, Any]) -> None:
    assert disk_rate([line], MACHINE, 1000) is None
    assert memory_rate([line], MACHINE) is None


def test_lines_lie_in_the_checkout_and_in_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    assert record_folders(tmp_path) == [tmp_path / "home/bench"]
    (tmp_path / ".git").mkdir()
    (tmp_path / "src/flashmoe").mkdir(parents=True)
    folders = record_folders(tmp_path / "src")
    assert folders == [tmp_path / "bench/results", tmp_path / "home/bench"]
    assert recorded_rows(folders) == []
    folders[1].mkdir(parents=True)
    (folders[1] / "disk.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="not a recorded line"):
        recorded_rows(folders)


@pytest.fixture
def pack(tiny_packs: TinyPacks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackedModel:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "memory_rate", lambda threads, seconds: 4e10)
    monkeypatch.setattr(module, "_measured_disk", lambda pack, here, place: 1e9)
    return PackedModel.open(tiny_packs.get("qwen3_moe"))


def values(found: MachineRates) -> list[Known]:
    return [found.disk, found.memory]


def test_what_is_not_recorded_is_measured(pack: PackedModel) -> None:
    measured = [Known(1e9, "measured"), Known(4e10, "measured")]
    assert values(machine_rates(pack, True, "auto")) == measured


def test_a_recorded_line_of_this_machine(pack: PackedModel, tmp_path: Path) -> None:
    block = pack.manifest.experts.record_bytes
    here = machine_facts(pack.path)
    line = row("2026-11-01", here, disk_bytes_per_s=7e9, block_bytes=block)
    line |= {"schema": 1, "verb": "decode"}
    (tmp_path / "home/bench").mkdir(parents=True)
    (tmp_path / "home/bench/decode.jsonl").write_text(json.dumps(line) + "\n")
    disk, memory = values(machine_rates(pack, True, "auto"))
    assert disk == Known(7e9, "recorded", "2026-11-01 on this disk")
    assert memory.origin == "measured"
    assert machine_rates(pack, True, "measure").disk.origin == "measured"


def test_assumed_rates_touch_nothing(pack: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "memory_rate")
    found = machine_rates(pack, False, "assume")
    assert found.disk == Known(ASSUMED_DISK, "assumed")
    with pytest.raises(UsageError, match=r"auto \| measure \| assume"):
        machine_rates(pack, True, "guess")
