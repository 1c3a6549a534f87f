from __future__ import annotations

import logging
from typing import Any

import pytest

from flashmoe.checkpoint.config import ConfigReader, Rope
from flashmoe.errors import ConfigError


def test_typed_reads() -> None:
    reader = ConfigReader({"n": 4, "x": 1e-6, "on": True, "whole": 10000})
    assert reader.integer("n") == 4
    assert reader.number("x") == 1e-6
    assert reader.number("whole") == 10000.0
    assert reader.flag("on") is True
    assert reader.integer("absent", default=7) == 7
    assert reader.divisor("n", of=8) == 4
    assert reader.even("n") == 4


@pytest.mark.parametrize(
    ("raw", "read", "message"),
    [
        ({}, lambda r: r.integer("n"), "config.json: n: key is missing"),
        ({"n": None}, lambda r: r.integer("n"), "key is missing"),
        ({"n": 0}, lambda r: r.integer("n"), r"expected an integer in \[1, 2147483647\], got 0"),
        ({"n": True}, lambda r: r.integer("n"), "got True"),
        ({"n": "8"}, lambda r: r.integer("n"), "got '8'"),
        ({"n": 2**31}, lambda r: r.integer("n"), "2147483648"),
        ({"n": 9}, lambda r: r.integer("n", high=8), r"\[1, 8\]"),
        ({"n": 3}, lambda r: r.divisor("n", of=8), "a divisor of 8, got 3"),
        ({"n": 3}, lambda r: r.even("n"), "an even integer"),
        ({"x": -1.0}, lambda r: r.number("x"), "a positive number"),
        ({"x": 1e999}, lambda r: r.number("x"), "a positive number"),
        ({"b": 1}, lambda r: r.flag("b"), "true or false"),
        ({"b": 1}, lambda r: r.require("b", True), "unsupported value; expected True, got 1"),
        ({"s": []}, lambda r: r.section("s"), "an object"),
        ({"c": ["a"]}, lambda r: r.choices("c", ("a", "b"), 2), "a list of 2"),
        ({"c": ["a", "x"]}, lambda r: r.choices("c", ("a", "b"), 2), r"a \| b, got 'x'"),
        ({"quantization_config": {}}, lambda r: r.finish(), "quantization_config: unsupported"),
    ],
)
def test_refusals_name_the_key(raw: dict[str, Any], read: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(ConfigReader(raw))


def test_aliases_that_disagree() -> None:
    reader = ConfigReader({"num_experts": 8, "num_local_experts": 16})
    with pytest.raises(ConfigError, match=r"num_experts and num_local_experts: .*\[8, 16\]"):
        reader.integer("num_experts", "num_local_experts")


def test_aliases() -> None:
    for name in ("num_experts", "num_local_experts"):
        assert ConfigReader({name: 8}).integer("num_experts", "num_local_experts") == 8


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 500000}},
    ],
)
def test_rope_old_and_new(raw: dict[str, Any]) -> None:
    assert ConfigReader(raw).rope(default_partial=0.5) == Rope(5e5, 0.5)


def test_rope_partial_factor_and_image_positions() -> None:
    new = {"rope_theta": 1.0, "partial_rotary_factor": 0.25, "mrope_section": [3, 3, 2]}
    assert ConfigReader({"rope_parameters": new}).rope(1.0) == Rope(1.0, 0.25)
    old = {"rope_theta": 1.0, "partial_rotary_factor": 0.25}
    assert ConfigReader(old).rope(1.0) == Rope(1.0, 0.25)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "rope_theta: key is missing"),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 4}}, "got 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}}, "got 'linear'"),
        ({"rope_parameters": {"rope_theta": 1.0, "factor": 2.0}}, "factor"),
        (
            {"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"rope_type": "yarn"}},
            "rope_scaling: rope_type: unsupported value",
        ),
        ({"rope_theta": 2.0, "rope_parameters": {"rope_theta": 1.0}}, "expected 1.0 as in"),
        ({"rope_theta": 2.0, "partial_rotary_factor": 1.5}, r"\(0, 1\]"),
    ],
)
def test_rope_refusals(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConfigReader(raw).rope(default_partial=1.0)


def test_unknown_keys_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = ConfigReader({"n": 1, "novel_gate": True, "another": 2, "use_cache": True})
    reader.integer("n")
    with caplog.at_level(logging.WARNING):
        reader.finish()
    assert [r.getMessage() for r in caplog.records] == [
        "config.json: ignored unknown keys: another, novel_gate"
    ]


def test_text_part_of_a_multimodal_config() -> None:
    raw = {"text_config": {"n": 1}, "vision_config": {}, "tie_word_embeddings": True}
    reader = ConfigReader(raw).text_model()
    assert reader.integer("n") == 1
    assert reader.flag("tie_word_embeddings") is True
    with pytest.raises(ConfigError, match=r"config\.json: text_config: absent: key is missing"):
        reader.integer("absent")


def test_head_tied_here_and_untied_there() -> None:
    raw = {"text_config": {"tie_word_embeddings": False}, "tie_word_embeddings": True}
    with pytest.raises(ConfigError, match=r"text_config: tie_word_embeddings: .*True, got False"):
        ConfigReader(raw).text_model()
