"""Lines that `flashmoe bench` recorded, and a model's sizes from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashmoe.forecast.model import Sizes

RESULTS = Path(__file__).parents[2] / "bench/results"


def recorded(verb: str, *times: str) -> list[dict[str, Any]]:
    """The committed lines of a file that were measured at these times, as they begin."""
    lines = (RESULTS / f"{verb}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["time"].startswith(times)]


def sizes_of_row(row: dict[str, Any], touched: float) -> Sizes:
    """touched: bytes of weights and experts that a token touches."""
    model = row["model"]
    return Sizes(
        layers=model["moe_layers"],
        num_experts=model["num_experts"],
        experts_per_token=model["num_experts_per_tok"],
        record=model["record_bytes"],
        dense=round(touched) - model["bytes_per_token"],
        active_parameters=model["active_parameters"],
    )
