"""What was kept of a prompt gives the bits of running it again, or is not used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.errors import MemoryBudgetError
from flashmoe.generate.prefix import PrefixCache, root_of
from flashmoe.generate.prefix_files import PrefixFiles
from tests.support.packs import some_ids
from tests.support.serving import Told, ask, run_all, scheduler_of

RAM = 32 << 20
HISTORY = some_ids(150)


@pytest.fixture
def model(tiny: Path) -> Iterator[Model]:
    with flashmoe.load(tiny, cache="50%", readers=1, parallel=4, prefix_ram=RAM) as model:
        yield model


def run(model: Model, kept: PrefixCache | None, prompt: list[int], tokens: int = 8) -> Told:
    return run_all(scheduler_of(model, 4, kept), [ask(prompt, tokens)])[0]


def assert_reused(model: Model, kept: PrefixCache, prompt: list[int], cached: int) -> None:
    told = run(model, kept, prompt)
    assert told.cached == cached
    assert told.finished.usage.cached_tokens == cached
    assert told.bits == run(model, None, prompt).bits


@pytest.mark.parametrize("length", [64, 65, 128, 129, 150])
def test_a_prompt_again_costs_its_last_block(model: Model, length: int) -> None:
    kept = model.prefix_cache()
    run(model, kept, HISTORY[:length])
    assert_reused(model, kept, HISTORY[:length], (length - 1) // 64 * 64)


def test_a_longer_history_costs_its_new_tokens(model: Model) -> None:
    kept = model.prefix_cache()
    run(model, kept, HISTORY[:130])
    assert_reused(model, kept, HISTORY[:130] + some_ids(70, 5), 128)


def test_histories_that_part_share_their_beginning(model: Model, family: str) -> None:
    """States that belong to one position are kept at the ends of prompts only."""
    kept = model.prefix_cache()
    run(model, kept, HISTORY)
    rows_only = family in ("qwen3_moe", "deepseek_v3")
    assert_reused(model, kept, HISTORY[:100] + some_ids(60, 7), 64 if rows_only else 0)


def test_an_answer_is_kept_where_it_can_be(model: Model, family: str) -> None:
    kept = model.prefix_cache()
    told = run(model, kept, HISTORY[:100], tokens=60)
    rows_only = family in ("qwen3_moe", "deepseek_v3")
    assert_reused(model, kept, HISTORY[:100] + told.ids + [1, 2, 3], 128 if rows_only else 64)


def test_sequences_that_run_together_are_kept_apart(model: Model) -> None:
    kept = model.prefix_cache()
    prompts = [some_ids(140, seed) for seed in range(4)]
    run_all(scheduler_of(model, 4, kept), [ask(p) for p in prompts])
    for prompt in prompts:
        assert_reused(model, kept, prompt, 128)


def test_the_bound_holds_and_beginnings_stay(model: Model) -> None:
    kept = model.prefix_cache()
    run(model, kept, HISTORY)
    one = kept.nbytes
    small = PrefixCache(b"r" * 32, model._loaded.engine.new_state(), one)
    for seed in range(3):
        run(model, small, some_ids(150, seed))
        assert small.nbytes <= one
    assert_reused(model, small, some_ids(150, 2), 128)


def test_too_little_memory_is_said(model: Model) -> None:
    with pytest.raises(MemoryBudgetError, match="--prefix-ram: too small"):
        PrefixCache(b"r" * 32, model._loaded.engine.new_state(), 100)


def test_memory_for_prefixes_is_counted_at_load(tiny: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="kept prefixes"):
        flashmoe.load(tiny, ram="300M", prefix_ram="1G")


def on_disk(model: Model, folder: Path) -> PrefixCache:
    return model.prefix_cache(folder)


def test_files_survive_a_restart(model: Model, tmp_path: Path) -> None:
    run(model, on_disk(model, tmp_path), HISTORY)
    assert_reused(model, on_disk(model, tmp_path), HISTORY, 128)


@pytest.mark.parametrize("at", [0, 5, 9, 20, 40, -1])
def test_a_damaged_file_is_removed_and_not_used(
    model: Model, tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    run(model, on_disk(model, tmp_path), HISTORY)
    files = sorted(tmp_path.glob("*/*.kept"))
    for file in files:
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert_reused(model, on_disk(model, tmp_path), HISTORY, 0)
    assert "is not usable and is removed" in caplog.text


@pytest.mark.parametrize("size", [0, 10, 100])
def test_a_torn_file_is_not_used(
    model: Model, tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    run(model, on_disk(model, tmp_path), HISTORY)
    for file in tmp_path.glob("*/*.kept"):
        file.write_bytes(file.read_bytes()[:size])
    assert_reused(model, on_disk(model, tmp_path), HISTORY, 0)


def test_a_file_has_its_name_only_once_it_is_on_the_disk(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a power cut leaves under a name is whole."""
    synced: list[Path] = []

    def sync(fd: int, where: Path) -> None:
        assert not where.exists()
        synced.append(where)

    monkeypatch.setattr("flashmoe.generate.prefix_files.sync", sync)
    run(model, on_disk(model, tmp_path), HISTORY)
    assert sorted(synced) == sorted(tmp_path.glob("*/*.kept")) != []


def test_one_damaged_file_costs_what_comes_after(model: Model, tmp_path: Path) -> None:
    run(model, on_disk(model, tmp_path), HISTORY)
    newest = sorted(tmp_path.glob("*/*.rows.kept"))[0]
    newest.write_bytes(b"")
    told = run(model, on_disk(model, tmp_path), HISTORY)
    assert told.cached in (0, 64)
    assert told.bits == run(model, None, HISTORY).bits


def test_another_model_finds_nothing(model: Model, tmp_path: Path) -> None:
    run(model, on_disk(model, tmp_path), HISTORY)
    root = root_of((*model._loaded.results, "another"))
    state = model._loaded.engine.new_state()
    other = PrefixCache(root, state, RAM, PrefixFiles(tmp_path, root, 1 << 30))
    assert other.restore(HISTORY, state) == 0


def test_a_file_under_another_name_is_refused(model: Model, tmp_path: Path) -> None:
    """Copied by hand, say: the name inside is what counts."""
    run(model, on_disk(model, tmp_path), HISTORY)
    first, second = sorted(tmp_path.glob("*/*.rows.kept"))[:2]
    first.write_bytes(second.read_bytes())
    assert run(model, on_disk(model, tmp_path), HISTORY).bits == run(model, None, HISTORY).bits


def test_the_disk_bound_holds(model: Model, tmp_path: Path) -> None:
    run(model, on_disk(model, tmp_path), HISTORY)
    size = sum(f.stat().st_size for f in tmp_path.glob("*/*.kept"))
    for seed in range(1, 4):
        run(model, model.prefix_cache(tmp_path, disk_bytes=size), some_ids(150, seed))
        assert sum(f.stat().st_size for f in tmp_path.glob("*/*.kept")) <= size
    assert list(tmp_path.glob("*/*.tmp")) == []
