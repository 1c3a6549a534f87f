from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.bench.concurrency import ConcurrencyOptions, measure_concurrency
from flashmoe.errors import UsageError


def test_every_number_of_streams_is_measured(tiny_pack: Path) -> None:
    said: list[str] = []
    options = ConcurrencyOptions(streams=[1, 3], tokens=5, prompt_tokens=4, long_prompt=70)
    one, three = measure_concurrency(tiny_pack, options, said.append)["runs"]
    assert (one["tokens"], three["tokens"]) == (5, 15)
    for run in (one, three):
        assert run["tokens_per_second"] > 0
        assert 0 <= run["hit_rate"] <= 1
        assert run["gap_seconds"]["median"] <= run["gap_seconds"]["max"]
        assert run["beside"]["prompt_tokens"] == 70
    assert "3 streams: measuring" in said


@pytest.mark.parametrize("wrong", [{"streams": []}, {"streams": [0]}, {"tokens": 0}])
def test_what_cannot_be_measured(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ConcurrencyOptions(**wrong)  # type: ignore[arg-type]
