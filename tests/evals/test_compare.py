"""Packs side by side: figures, what is kept, and what the page says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe.demo import demo_model_path
from flashmoe.errors import UsageError
from flashmoe.evals.compare import compare
from flashmoe.evals.measure import EvalOptions
from flashmoe.evals.report import comparison_page
from tests.evals.conftest import demo_calibrated_on, prose

CASE = {
    "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "Weather of a city",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
            },
        }
    ],
    "expected": {"name": "get_weather", "arguments": {"city": "Rome"}},
}


def compared(options: EvalOptions, *models: Path, **more: Any) -> dict[str, Any]:
    return compare(models, options, lambda text: None, **more)


def test_a_model_beside_itself_differs_by_nothing(options: EvalOptions) -> None:
    demo = demo_model_path()
    report = compared(options, demo, demo, reference=demo)
    first, second = report["models"]
    assert first["kl_mean"] == second["kl_mean"] < 1e-6
    assert report["pairs"][0]["delta_nll"]["mean"] == 0
    assert first["expert_bits_per_weight"] > 4
    assert report["inputs"]["text"]["scored_tokens"] == 45
    assert report["warnings"] == []
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_page_needs_nothing_beside_it_and_says_what_was_used(options: EvalOptions) -> None:
    report = compared(options, demo_model_path(), reference=demo_model_path())
    html = comparison_page(report)
    assert re.search(r"(src|href)=|https?://|@import|url\(", html) is None
    assert report["inputs"]["text"]["sha256"] in html
    assert html.count("<svg") == 3
    assert "not calibrated" in html
    assert "bf16 rounding of the reference" in html


def test_without_a_reference_or_a_text_the_page_still_stands(
    options: EvalOptions, tmp_path: Path
) -> None:
    page = comparison_page(compared(options, demo_model_path()))
    assert page.count("<svg") == 3
    assert "No reference was given" in page
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps(CASE) + "\n")
    report = compared(EvalOptions(tool_calls=cases), demo_model_path(), demo_model_path())
    page = comparison_page(report)
    assert "there is nothing to plot" in page
    assert "Tool calls" in page
    assert report["pairs"][0]["delta_exact"]["mean"] == 0
    with pytest.raises(UsageError, match="a reference needs a text"):
        compared(EvalOptions(tool_calls=cases), demo_model_path(), reference=demo_model_path())


def test_calibration_on_the_measured_text_is_cried_out(
    options: EvalOptions, tmp_path: Path
) -> None:
    leaking = demo_calibrated_on(prose(0), tmp_path / "leaking")
    clean = demo_calibrated_on(prose(7), tmp_path / "clean")
    report = compared(options, leaking, clean)
    assert [row["calibration"]["leaks"]["text"]["verdict"] for row in report["models"]] == [
        "overlaps",
        "disjoint",
    ]
    assert len(report["warnings"]) == 1
    assert report["warnings"][0].startswith("leaking was calibrated on passages of the text")
    assert '<p class="warning">WARNING: leaking' in comparison_page(report)


def test_a_second_run_opens_models_only_to_cut_the_text(
    options: EvalOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = demo_model_path()
    before = compared(options, demo, reference=demo)
    opened: list[object] = []
    load = flashmoe.load

    def counted(path: Path, **settings: Any) -> Any:
        opened.append(path)
        return load(path, **settings)

    monkeypatch.setattr(flashmoe, "load", counted)
    assert compared(options, demo, reference=demo) == before
    assert len(opened) == 1
    compared(replace(options, windows=2), demo, reference=demo)
    assert len(opened) == 4


@pytest.mark.parametrize("held", [None, "both"])
def test_calls_free_and_held(tmp_path: Path, held: str | None) -> None:
    if held:
        pytest.importorskip("llguidance", reason="needs the 'serve' extra")
    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps(CASE) + "\n")
    report = compared(EvalOptions(tool_calls=cases, held_to=held), demo_model_path())
    calls = report["models"][0]["tool_calls"]
    assert calls["cases"] == 1
    assert ("constrained" in calls) == (held == "both")
    if held:
        assert calls["constrained"]["valid_json"] == 1
        assert "held to the grammar" in comparison_page(report)
