"""Opening a model costs what it must: bounded by counts, since times depend on the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import flashmoe
from flashmoe._native import Reader
from flashmoe.bench import startup
from flashmoe.bench.startup import StartupOptions, measure_startup, open_once
from flashmoe.errors import UsageError
from flashmoe.experts.source import Read
from flashmoe.files import read_exactly
from flashmoe.store import packed
from flashmoe.store.format import PAGE
from flashmoe.store.packed import PackedModel


def test_parts_add_up(tiny_pack: Path) -> None:
    run = open_once(tiny_pack, {}, lambda text: None)
    assert sum(run["parts"].values()) == pytest.approx(run["open_seconds"], abs=0.5)
    assert 0 < run["open_seconds_but_weights"] < run["open_seconds"]
    assert run["first_token_seconds"] > 0


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_every_run_is_counted(tiny_pack: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "SETTLE_S", 0.0)
    monkeypatch.setattr(startup, "SAMPLE_S", 0.1)
    options = StartupOptions(repeat=2, start=start)  # type: ignore[arg-type]
    figures = measure_startup(tiny_pack, options, lambda text: None)
    assert len(figures["runs"]) == 2
    assert figures["help_seconds"] > 0
    assert figures["pack_bytes"] > figures["resident_bytes"]
    assert figures["first_token_bytes_read"] > 0
    for rate in ("resident", "disk", "fresh_memory"):
        assert figures[f"{rate}_bytes_per_s"] > 0


def test_no_runs() -> None:
    with pytest.raises(UsageError, match="--repeat"):
        StartupOptions(repeat=0)


def test_opening_reads_the_resident_part_once_and_of_experts_only_headers(
    tiny_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    class Counting(Reader):
        def submit_many(self, reads: Sequence[Read], guess: bool = False) -> None:
            counts.extend(read[3] for read in reads)
            super().submit_many(reads, guess)

    def counted(fd: int, view: memoryview, offset: int, where: object) -> None:
        counts.append(len(view))
        read_exactly(fd, view, offset, where)

    pack = PackedModel.open(tiny_pack)
    headers = sum(len(header) for header, _ in pack.manifest.data_files().values())
    monkeypatch.setattr(packed, "read_exactly", counted)
    monkeypatch.setattr("flashmoe._native.Reader", Counting)
    with flashmoe.load(tiny_pack) as model:
        assert model.stats.bytes_read == 0
    whole_pages = 2 * PAGE  # where tensors that are kept border on one that is not
    assert 0 <= sum(counts) - (headers + pack.resident_bytes) <= whole_pages


def test_a_shared_experts_file_is_opened_once(
    tiny_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    system_open = os.open

    def counting(path: str | Path, *arguments: int, **options: int) -> int:
        opened.append(Path(path).name)
        return system_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", counting)
    with flashmoe.load(tiny_pack):
        pass
    experts = [name for name in opened if name.startswith("experts-")]
    assert len(experts) == len(set(experts)) == len(PackedModel.open(tiny_pack).files)
