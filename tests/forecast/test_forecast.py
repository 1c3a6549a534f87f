"""The formulas for the CPU, held to what was recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flashmoe.forecast.hits import even_hit_rate
from flashmoe.forecast.model import Rates, Sizes, first_token_seconds, tokens_per_second
from flashmoe.forecast.on_host import biggest_win
from tests.forecast.support import recorded, sizes_of_row
from tests.support.tolerances import FORECAST_ERROR

# A row of bench/results/decode.jsonl: 24 layers of Qwen3-30B-A3B.
ROW = Sizes(24, 128, 8, 2_654_208, 824_918_016, 1_676_519_424)
ROW_RATES = Rates(1.728e9, 41.6e9, 2)
# Those of the kernels as they are now, beside the embedded model, which launches bound.
ROWS = [
    row
    for row in recorded("decode")
    if row["machine"]["isa"] == "avx512" or row["model"]["moe_layers"] == 8
]


@pytest.mark.parametrize("row", ROWS, ids=[row["time"] for row in ROWS])
def test_decode_of_every_recorded_run_is_met(row: dict[str, Any]) -> None:
    figures = row["figures"]
    rates = figures["rates"]
    sizes = sizes_of_row(row, _touched(row))
    given = Rates(rates["disk_bytes_per_s"], rates["memory_bytes_per_s"], row["machine"]["cores"])
    expected = tokens_per_second(sizes, given, figures["hit_rate"])
    measured = figures["tokens_per_second"]["median"]
    assert expected == pytest.approx(measured, rel=FORECAST_ERROR)


def _touched(row: dict[str, Any]) -> float:
    """Bytes of a token: of 24 layers as in ROW, of the embedded model all that is resident."""
    model = row["model"]
    dense = ROW.dense if model["moe_layers"] == ROW.layers else model["resident_bytes"]
    return float(dense + model["bytes_per_token"])


def test_limits_of_the_formulas() -> None:
    in_memory = tokens_per_second(ROW, ROW_RATES, 1.0)
    assert in_memory > tokens_per_second(ROW, ROW_RATES, 0.5) > 0
    cold, warm = (first_token_seconds(ROW, ROW_RATES, 16, share) for share in (0.0, 1.0))
    assert warm < cold
    assert "7 GB/s" in biggest_win(ROW, ROW_RATES, 100, even_hit_rate)


def test_turning_and_larger_reads_cost() -> None:
    plain = tokens_per_second(ROW, ROW_RATES, 0.5)
    assert tokens_per_second(replace(ROW, read=2.0 * ROW.record), ROW_RATES, 0.5) < plain
    assert tokens_per_second(replace(ROW, turning=0.01), ROW_RATES, 0.5) < plain
    assert tokens_per_second(replace(ROW, turning=0.01), ROW_RATES, 1.0) == pytest.approx(
        tokens_per_second(ROW, ROW_RATES, 1.0)
    )
