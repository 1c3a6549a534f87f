"""What a decode measurement counts, on a model small enough to know all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe.bench.decode import DecodeOptions, measure_decode, touched_bytes
from flashmoe.bench.stretch import Stretch, middle, random_ids, spread, stretch
from flashmoe.errors import UsageError
from flashmoe.store.packed import PackedModel
from tests.support.bench import DISK_RATE, MEMORY_RATE

LAYERS, EXPERTS, PER_TOKEN = 2, 6, 2


def measure(path: Path, said: list[str] | None = None, **options: Any) -> dict[str, Any]:
    chosen = DecodeOptions(**{"tokens": 5, "prompt_tokens": 3, "repeat": 2, **options})
    return measure_decode(path, chosen, (said if said is not None else []).append)


@pytest.mark.usefixtures("fixed_rates")
def test_every_window_is_counted(tiny_pack: Path) -> None:
    figures = measure(tiny_pack)
    assert len(figures["windows"]) == 2
    for window in figures["windows"]:
        assert window["tokens"] == 5
        assert sum(window["phase_ms_per_token"].values()) == pytest.approx(
            1e3 * window["seconds"] / 5
        )
    found = [window["tokens_per_second"] for window in figures["windows"]]
    speed = figures["tokens_per_second"]
    assert (speed["min"], speed["max"]) == (min(found), max(found))


@pytest.mark.usefixtures("fixed_rates")
def test_without_a_cache_every_expert_is_read(tiny_pack: Path) -> None:
    figures = measure(tiny_pack, engine={"cache": 0})
    record = PackedModel.open(tiny_pack).manifest.experts.record_bytes
    assert figures["hit_rate"] == 0.0
    assert figures["bytes_read_per_token"] == LAYERS * PER_TOKEN * record
    assert figures["disk_bytes_per_s_while_reading"] > 0


@pytest.mark.usefixtures("fixed_rates")
def test_a_warm_cache_of_everything_reads_nothing(tiny_pack: Path) -> None:
    figures = measure(tiny_pack, start="warm", tokens=60, engine={"cache": "all"})
    assert figures["hit_rate"] == 1.0
    assert figures["bytes_read_per_token"] == 0
    assert figures["disk_bytes_per_s_while_reading"] is None
    assert figures["cache"]["slots"] == LAYERS * EXPERTS


@pytest.mark.usefixtures("fixed_rates")
def test_a_cold_window_starts_from_an_empty_cache(tiny_pack: Path) -> None:
    # With one token of prompt, at most 2 of the 6 experts of a layer are there.
    figures = measure(tiny_pack, prompt_tokens=1, tokens=40, repeat=3, engine={"cache": "all"})
    assert all(window["bytes_read"] > 0 for window in figures["windows"])


@pytest.mark.usefixtures("fixed_rates")
def test_the_bound_is_that_of_the_rates(tiny_pack: Path) -> None:
    figures = measure(tiny_pack, repeat=1, engine={"cache": 0})
    touched = figures["bytes_touched_per_token"]
    least = max(figures["bytes_read_per_token"] / DISK_RATE, touched / MEMORY_RATE)
    assert figures["bound_tokens_per_second"] == pytest.approx(1 / least)
    reached = figures["tokens_per_second"]["median"] * least
    assert figures["bound_fraction"] == pytest.approx(reached)


@pytest.mark.usefixtures("fixed_rates")
@pytest.mark.parametrize(("start", "openings"), [("cold", 3), ("warm", 1)])
def test_rates_are_sampled_around_every_opening(tiny_pack: Path, start: str, openings: int) -> None:
    said: list[str] = []
    figures = measure(tiny_pack, said, repeat=3, start=start)
    assert said.count("loading the model") == openings
    assert len(figures["rates"]["disk_samples"]) == openings + 1


@pytest.mark.usefixtures("fixed_rates")
def test_fewer_experts_touch_fewer_bytes(tiny_pack: Path) -> None:
    pack = PackedModel.open(tiny_pack)
    figures = measure(tiny_pack, repeat=1, engine={"experts_per_token": 1})
    assert figures["experts_per_token"] == 1
    assert figures["bytes_touched_per_token"] == touched_bytes(pack, 1)
    difference = touched_bytes(pack, 2) - touched_bytes(pack, 1)
    assert difference == LAYERS * pack.manifest.experts.record_bytes


def test_of_an_untied_embedding_one_row_is_touched(tiny_pack: Path) -> None:
    pack = PackedModel.open(tiny_pack)
    unread = pack.resident_bytes - touched_bytes(pack, 0)
    embedding = pack.manifest.tensors["embed_tokens"]
    assert 0.98 * embedding.nbytes < unread < embedding.nbytes  # 100 rows, padded to 104


@pytest.mark.parametrize("name", ["tokens", "prompt_tokens", "repeat"])
def test_nothing_to_measure(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: must be at least 1"):
        DecodeOptions(**{name: 0})


def test_a_stretch_counts_what_happens_inside_it_only(tiny_pack: Path) -> None:
    with flashmoe.load(tiny_pack, cache=0, context_length=16) as model:
        session = model.session()
        experts = session.engine.experts
        session.feed([1, 2, 3])
        with stretch(model, 2) as measured:
            session.feed([4])
            session.feed([5])
        session.feed([6])
        assert session.engine.experts is experts
    assert (measured.hits, measured.misses) == (0, 2 * LAYERS * PER_TOKEN)
    assert 0 < measured.reading_seconds < measured.seconds
    assert sum(measured.phases.values()) == pytest.approx(measured.seconds)


def test_the_engine_is_as_before_after_an_error(tiny_pack: Path) -> None:
    with flashmoe.load(tiny_pack, context_length=16) as model:
        session = model.session()
        experts = session.engine.experts
        with pytest.raises(UsageError), stretch(model, 1):
            session.feed([])
        assert session.engine.experts is experts


def test_the_row_of_a_stretch() -> None:
    phases = {"python": 0.1, "disk_wait": 0.4}
    row = Stretch(4, 2.0, phases, hits=3, misses=1, bytes_read=800, reading_seconds=0.5).row()
    assert row["tokens_per_second"] == 2.0
    assert row["hit_rate"] == 0.75
    assert row["bytes_read_per_token"] == 200
    assert row["disk_bytes_per_s_while_reading"] == 1600
    assert (row["python_share"], row["disk_wait_share"]) == (0.05, 0.2)
    assert row["phase_ms_per_token"] == {"python": 25.0, "disk_wait": 100.0}


def test_ids_are_seeded_and_inside_the_vocabulary() -> None:
    ids = random_ids(100, 500, seed=1)
    assert ids == random_ids(100, 500, seed=1) != random_ids(100, 500, seed=2)
    assert min(ids) >= 0
    assert max(ids) < 100


def test_medians() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert middle([{"a": 1}, {"a": 3}], "a") == 2
    assert middle([{"a": 1}, {"a": None}], "a") is None
