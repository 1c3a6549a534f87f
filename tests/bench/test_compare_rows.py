"""Arithmetic of the comparison, and the choice of the peer's settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flashmoe.bench.compare.engines import make_request
from flashmoe.bench.compare.rows import (
    ROWS,
    Row,
    bound_figures,
    chosen_rows,
    ratio_figures,
    tokens_per_second,
)
from flashmoe.bench.compare.surroundings import limit_bytes
from flashmoe.bench.compare.trials import USUAL, Settings, Trials
from flashmoe.bench.rates import around_runs
from flashmoe.errors import UsageError


def run(tokens: int, seconds: float, missed: float = 0.0) -> dict[str, Any]:
    engine = {"bytes_read_per_token": missed}
    return {"tokens": tokens, "seconds": seconds, "engine": engine}


def test_rows_are_those_of_the_table() -> None:
    names = [row.name for row in ROWS]
    assert names == ["decode_ram", "prefill_ram", "decode_25", "decode_50", "prefill_25"]
    assert [row.share for row in ROWS] == [None, None, 0.25, 0.5, 0.25]


def test_chosen_rows_keep_the_order_of_the_table() -> None:
    assert [row.name for row in chosen_rows("prefill_25,decode_ram")] == [
        "decode_ram",
        "prefill_25",
    ]
    assert chosen_rows(None) == list(ROWS)
    with pytest.raises(UsageError, match="decode_75"):
        chosen_rows("decode_ram,decode_75")


def test_ratio_is_of_medians() -> None:
    # Ours: 10, 20, 40 tokens per second; the peer's: 5, 2, 8.
    pairs = [(run(20, 2), run(10, 2)), (run(40, 2), run(4, 2)), (run(80, 2), run(16, 2))]
    figures = ratio_figures(pairs)
    assert figures == {
        "ratio": 4.0,
        "flashmoe_median": 20.0,
        "peer_median": 5.0,
        "pairs": 3,
        "pair_ratios": [2.0, 10.0, 5.0],
    }
    json.dumps(figures, allow_nan=False)


def test_bound_of_the_disk_and_of_the_memory() -> None:
    # 100 bytes missed at 50 per second: 0.5 tok/s; 300 used at 100 per second: 0.33 tok/s.
    disk = bound_figures([run(1, 4, missed=100)], 100, [(50, 100)])
    assert disk["bound_median"] == 0.5
    assert disk["ratio"] == 0.5
    memory = bound_figures([run(1, 4, missed=100)], 300, [(50, 100)])
    assert memory["bound_median"] == pytest.approx(1 / 3)
    assert memory["ratio"] == pytest.approx(0.75)


def test_bound_is_taken_run_by_run() -> None:
    runs = [run(1, 2, missed=100), run(1, 4, missed=200), run(1, 10, missed=100)]
    figures = bound_figures(runs, 1, [(100, 100)] * 3)
    assert figures["ratio"] == 0.5
    assert figures["bytes_missed_per_token"] == 100


def test_bound_follows_the_disk_of_the_moment() -> None:
    # The same run on a disk of 100, 50 and 25 bytes per second: 1, 0.5 and 0.25 tok/s at best.
    runs = [run(1, 4, missed=100)] * 3
    figures = bound_figures(runs, 1, [(100, 100), (50, 100), (25, 100)])
    assert figures["fractions"] == [0.25, 0.5, 1.0]
    assert figures["disk_bytes_per_s"] == 50


def test_rates_around_runs() -> None:
    assert around_runs([1.0, 3.0, 10.0, 20.0]) == [2.0, 15.0]
    with pytest.raises(ValueError, match="shorter"):
        around_runs([1.0, 3.0, 10.0])


def test_limits_are_whole_pages() -> None:
    assert limit_bytes(0.25, 4 * 10 * 4096) == 10 * 4096
    assert limit_bytes(0.25, 4 * 10 * 4096 + 4 * 4095) == 10 * 4096
    assert limit_bytes(0.5, 9_324_786_720) % 4096 == 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_requests_are_seeded_and_sized(row: Row) -> None:
    request = make_request(row, {"memory": "mmap"}, vocab_size=100, seed=3)
    ours = make_request(row, {"cache": "all"}, vocab_size=100, seed=3)
    assert request == {**ours, "settings": {"memory": "mmap"}}
    assert request["ids"] != make_request(row, {}, vocab_size=100, seed=4)["ids"]
    assert (len(request["warm_up"]), len(request["ids"])) == (row.warm_up, row.tokens)
    assert bool(request["fill"]) == row.in_memory
    assert row.warm_up + row.tokens <= request["context_length"]


def trials(rates: dict[tuple[str, bool], float]) -> tuple[Trials, list[tuple[Row, Settings]]]:
    calls: list[tuple[Row, Settings]] = []

    def try_out(row: Row, settings: Settings) -> dict[str, Any]:
        calls.append((row, settings))
        rate = rates[settings["memory"], settings["flash_attention"]]
        return {"tokens": rate, "seconds": 1.0}

    return Trials(try_out), calls


def test_the_fastest_memory_then_flash_attention() -> None:
    rates = {("mmap", True): 3.0, ("read", True): 5.0, ("repack", True): 4.0, ("read", False): 6.0}
    found, calls = trials(rates)
    in_memory, limited = ROWS[0], ROWS[2]
    assert found.best(in_memory) == {**USUAL, "memory": "read", "flash_attention": False}
    # Memory of its own could not be let go under a limit.
    assert found.best(limited) == {**USUAL, "flash_attention": False}
    assert len(calls) == 4
    assert all(row.in_memory and row.kind == "decode" for row, _ in calls)


def test_each_kind_is_tried_once() -> None:
    rates = {(memory, flash): 1.0 for memory in ("mmap", "read", "repack") for flash in (0, 1)}
    found, calls = trials(rates)
    for row in ROWS:
        assert found.best(row)["flash_attention"]
    assert len(calls) == 4 + 6
    assert len(found.rows()) == 4 + 6


def test_smaller_pieces_of_a_prompt_are_for_memory_only() -> None:
    def try_out(row: Row, settings: Settings) -> dict[str, Any]:
        return run(row.tokens, float(settings["micro_batch"]))

    found = Trials(try_out)
    by_name = {row.name: row for row in ROWS}
    assert found.best(by_name["prefill_ram"])["micro_batch"] == 128
    assert found.best(by_name["prefill_25"])["micro_batch"] == 512


def test_tokens_per_second() -> None:
    assert tokens_per_second(run(64, 4.0)) == 16.0
