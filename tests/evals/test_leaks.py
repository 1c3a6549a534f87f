"""Whether calibration text is found again in what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe.demo import demo_model_path
from flashmoe.errors import PackError
from flashmoe.evals.calibrate import calibrate
from flashmoe.evals.leaks import case_sketch, check, passages, text_sketch
from flashmoe.evals.windows import cut_windows
from flashmoe.store.calibration import SHINGLES, Calibration
from flashmoe.store.packed import PackedModel
from flashmoe.text.shingles import Sketch
from tests.evals.conftest import demo_calibrated_on, prose


def case(question: str, city: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}],
        "tools": [],
        "expected": {"name": "weather", "arguments": {"city": city}},
    }


def sketch_of(text: str) -> Sketch:
    with flashmoe.load() as model:
        return text_sketch(model, cut_windows(model, text, 4, 64))


def test_a_calibration_text_is_found_again_whatever_its_windows(tmp_path: Path) -> None:
    pack = demo_calibrated_on(prose(1) + prose(0), tmp_path / "pack")
    manifest = PackedModel.open(pack).manifest
    leak = check(manifest, sketch_of(prose(0)))
    assert leak.verdict == "overlaps"
    assert leak.shared > 0.9 * leak.looked_at > 0  # windows cut words
    assert check(manifest, sketch_of(prose(2))).verdict == "disjoint"


def test_what_cannot_be_told_is_unknown(tmp_path: Path) -> None:
    manifest = PackedModel.open(demo_model_path()).manifest
    text = sketch_of(prose(0))
    assert check(manifest, text).verdict == "not calibrated"
    assert check(replace(manifest, calibration="some text; sha256 0"), text).verdict == "unknown"
    nothing = Sketch(text.hashes[:0], 0)
    whole = PackedModel.open(demo_calibrated_on(prose(0), tmp_path / "pack")).manifest
    assert check(whole, nothing).verdict == "unknown"


def test_calibrating_writes_the_sketch_that_is_checked(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(prose(0), encoding="utf-8")
    with flashmoe.load() as model:
        calibrate(model, [text], tmp_path / "file", tokens=300)
    record = Calibration(tmp_path / "file").record
    manifest = replace(PackedModel.open(demo_model_path()).manifest, calibration=record)
    assert record.count(SHINGLES) == 1
    assert check(manifest, sketch_of(prose(0))).verdict == "overlaps"
    assert check(manifest, sketch_of(prose(3))).verdict == "disjoint"


def test_turns_of_a_chat_are_passages_of_their_own() -> None:
    with flashmoe.load() as model:
        ids = model.tokenizer.encode("<|im_start|>user\nHow are you?<|im_end|>\nGood.")
        assert [text.strip() for text in passages(model.tokenizer, ids)] == [
            "user\nHow are you?",
            "Good.",
        ]


def test_short_cases_are_found_by_their_turns_and_common_ones_are_not_counted() -> None:
    asked = [
        case("What is the weather today in Rome?", "Rome"),
        case("And what of it in Oslo now?", "Oslo"),
    ]
    with flashmoe.load() as model:
        both = case_sketch(model, asked)
        twice = case_sketch(model, [asked[0], asked[0]])
        again = case_sketch(model, asked[:1])
    assert twice.total == 0
    assert again.total >= 1
    assert both.total >= 2


def test_a_damaged_sketch_is_an_error() -> None:
    manifest = PackedModel.open(demo_model_path()).manifest
    damaged = replace(manifest, calibration=f"text; sha256 0{SHINGLES}nonsense")
    with pytest.raises(PackError, match="shingles are damaged"):
        check(damaged, sketch_of(prose(0)))
