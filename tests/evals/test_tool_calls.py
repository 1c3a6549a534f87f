"""Calls of the demo model, held to their grammar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.evals.tool_calls import read_cases, score_tool_calls
from tests.support.demo import evaluation_files

pytest.importorskip("llguidance", reason="needs the 'serve' extra")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with flashmoe.load() as loaded:
        yield loaded


def cases() -> list[dict[str, Any]]:
    return read_cases(evaluation_files() / "tool_calls.jsonl")


@pytest.mark.checkpoint
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_a_held_call_is_valid(model: Model, mode: Any) -> None:
    assert score_tool_calls(model, cases()[:2], held_to=mode).valid_json == 2


@pytest.mark.checkpoint
@pytest.mark.slow
def test_every_held_call_is_valid_and_no_worse(model: Model) -> None:
    free, held = (score_tool_calls(model, cases(), held_to=mode) for mode in (None, "required"))
    assert held.valid_json == 100
    assert held.exact >= free.exact
