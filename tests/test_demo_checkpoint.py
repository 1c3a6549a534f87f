"""The real checkpoint, packed as bf16, against transformers and against its frozen figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.evals.perplexity import score_text, token_nll
from flashmoe.evals.tool_calls import read_cases, score_tool_calls
from tests.support import oracle
from tests.support.demo import demo_checkpoint, evaluation_files
from tests.support.oracle import assert_close_and_same_choice
from tests.support.tolerances import NLL_FROZEN, NLL_ORACLE

pytestmark = pytest.mark.checkpoint
TEXTS = {"books-valid": "books-valid.txt", "wikitext2-test": "wikitext2-test.txt"}
PROMPTS = [
    "Once upon a time",
    "<|im_start|>user\nWhat is 3 plus 4?<|im_end|>\n<|im_start|>assistant\n",
    "Sort these words: pear, apple, fig. " * 20,
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "bf16"
    flashmoe.pack(demo_checkpoint(), path, experts="bf16", dense="bf16")
    return path


@pytest.fixture(scope="module")
def model(packed: Path) -> Iterator[Model]:
    """With a quarter of its experts in memory: the figures must not depend on that."""
    with flashmoe.load(packed, cache="25%") as model:
        yield model


@pytest.fixture(scope="module")
def transformers_model() -> Any:
    auto = oracle.transformers().AutoModelForCausalLM
    return auto.from_pretrained(demo_checkpoint(), dtype=oracle.torch().float32).eval()


@pytest.fixture(scope="module")
def frozen() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((demo_checkpoint() / "reference.json").read_text())
    return figures


def windows(model: Model, name: str, count: int, tokens: int) -> np.ndarray:
    """The first windows of an evaluation text, int32 [count, tokens]."""
    text = (evaluation_files() / TEXTS[name]).read_text(encoding="utf-8")
    ids = model.tokenizer.encode(text)[: count * tokens]
    return np.array(ids, dtype=np.int32).reshape(count, tokens)


@pytest.mark.oracle
@pytest.mark.parametrize("prompt", PROMPTS, ids=["plain", "chat", "long"])
def test_logits_equal_transformers(model: Model, transformers_model: Any, prompt: str) -> None:
    ids = np.array(model.tokenizer.encode(prompt), dtype=np.int32)
    assert_close_and_same_choice(model.logits(ids), oracle.logits(transformers_model, ids))


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEXTS)
def test_nll_of_a_few_windows_equals_transformers(
    model: Model, transformers_model: Any, name: str
) -> None:
    for window in windows(model, name, 2, 128):
        expected = token_nll(oracle.logits(transformers_model, window)[:-1], window[1:])
        got = token_nll(model.logits(window)[:-1], window[1:])
        assert abs(got.mean() - expected.mean()) <= NLL_ORACLE


def greedy_matches(model: Model, count: int) -> int:
    """How many of the first cases give exactly the token ids that transformers gave."""
    cases = read_cases(evaluation_files() / "tool_calls.jsonl")[:count]
    expected = json.loads((demo_checkpoint() / "reference-greedy.json").read_text())[:count]
    got = score_tool_calls(model, cases).output_ids
    return sum(g == e["output_ids"] for g, e in zip(got, expected, strict=True))


def test_greedy_ids_equal_the_frozen_ones(model: Model) -> None:
    assert greedy_matches(model, 12) == 12


@pytest.mark.slow
def test_greedy_ids_of_all_cases(model: Model) -> None:
    """Up to three may differ, where the two likeliest tokens are closer than rounding."""
    assert greedy_matches(model, 100) >= 97


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_nll_equals_the_frozen_one(model: Model, frozen: dict[str, Any], name: str) -> None:
    text = (evaluation_files() / TEXTS[name]).read_text(encoding="utf-8")
    figures = frozen[name]
    score = score_text(model, text, figures["windows"], figures["window_tokens"])
    assert score.scored_tokens == figures["scored_tokens"]
    assert abs(score.nll - figures["nll"]) <= NLL_FROZEN


@pytest.mark.slow
def test_tool_calls_equal_the_frozen_ones(model: Model, frozen: dict[str, Any]) -> None:
    score = score_tool_calls(model, read_cases(evaluation_files() / "tool_calls.jsonl"))
    assert abs(score.exact - frozen["tool_calls"]["exact"]) <= 3
    assert abs(score.valid_json - frozen["tool_calls"]["valid_json"]) <= 3
