"""Calls of models of few bits, through the API: held to their grammar, they are valid."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import flashmoe
from tests.support.demo import demo_checkpoint, evaluation_files

SCRIPT = Path(__file__).parents[2] / "bench" / "serve_tools.py"


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["q2", "q3"])
def test_every_call_is_valid_json_of_its_schema(tmp_path: Path, experts: str) -> None:
    pack = tmp_path / experts
    flashmoe.pack(demo_checkpoint(), pack, experts=experts, dense="q8")
    command = [sys.executable, SCRIPT, evaluation_files() / "tool_calls.jsonl", pack]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200)
    for counted in json.loads(done.stdout)[experts].values():
        assert counted["calls"] >= 95
        assert counted["valid_json"] == counted["schema"] == counted["calls"]
