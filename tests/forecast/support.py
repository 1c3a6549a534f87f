"""Lines that `flashmoe bench` recorded, and a model's sizes from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashmoe.forecast.model import Sizes

RESULTS = Path(__file__).parents[2] / "bench/results"


def recorded(verb: str) -> list[dict[str, Any]]:
    """The committed lines of a file, oldest first."""
    return [json.loads(line) for line in (RESULTS / f"{verb}.jsonl").read_text().splitlines()]


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
