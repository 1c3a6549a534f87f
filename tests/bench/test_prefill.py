from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.bench.prefill import PrefillOptions, measure_prefill
from flashmoe.errors import UsageError


def test_every_length_starts_cold_and_is_counted(tiny_pack: Path) -> None:
    said: list[str] = []
    options = PrefillOptions(lengths=[8, 100], repeat=2)
    short, long = measure_prefill(tiny_pack, options, said.append)["prompts"]
    assert (short["prompt_tokens"], long["prompt_tokens"]) == (8, 100)
    assert said.count("loading the model") == 4
    assert "prompt of 100 tokens, run 2 of 2: 0 of 100 tokens" in said
    for prompt in (short, long):
        assert len(prompt["runs"]) == 2
        for run in prompt["runs"]:
            assert run["bytes_read"] > 0
            assert sum(run["phase_ms_per_token"].values()) == pytest.approx(
                1e3 * run["seconds"] / prompt["prompt_tokens"]
            )
    slowest = max(run["seconds"] for run in long["runs"])
    assert 0 < long["time_to_first_token"] <= slowest


def test_a_warm_run_finds_what_the_one_before_it_read(tiny_pack: Path) -> None:
    said: list[str] = []
    options = PrefillOptions(lengths=[100], repeat=2, start="warm", engine={"cache": "all"})
    (prompt,) = measure_prefill(tiny_pack, options, said.append)["prompts"]
    assert said.count("loading the model") == 1
    assert [run["bytes_read"] for run in prompt["runs"]] == [0, 0]


def test_a_prompt_longer_than_the_model_allows(tiny_pack: Path) -> None:
    with pytest.raises(UsageError, match="longer than the model's context"):
        measure_prefill(tiny_pack, PrefillOptions(lengths=[256]), lambda text: None)


@pytest.mark.parametrize("lengths", [[], [0], [5, -1]])
def test_lengths_that_are_none(lengths: list[int]) -> None:
    with pytest.raises(UsageError, match="--tokens: not lengths of prompts"):
        PrefillOptions(lengths=lengths)


def test_no_runs() -> None:
    with pytest.raises(UsageError, match="--repeat"):
        PrefillOptions(repeat=0)
