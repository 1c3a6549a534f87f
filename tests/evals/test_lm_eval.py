"""The adapter for lm-evaluation-harness, with the harness itself where it is installed."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.errors import UsageError
from flashmoe.evals.perplexity import log_softmax

pytest.importorskip("lm_eval.api.model", reason="needs the 'lm-eval' extra")
from lm_eval.api.instance import Instance

from flashmoe.evals.lm_eval import HarnessModel, run_tasks, sampling_of

CONTEXT = 96


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with flashmoe.load(context_length=CONTEXT, parallel=3) as loaded:
        yield loaded


@pytest.fixture
def harness(model: Model) -> HarnessModel:
    return HarnessModel(model)


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, n) for n, given in enumerate(arguments)]


def logprob(model: Model, context: list[int], text: list[int]) -> float:
    logs = log_softmax(model.logits(context + text[:-1])[len(context) - 1 :])
    return float(logs[np.arange(len(text)), text].sum())


def test_loglikelihoods_are_those_of_the_model(model: Model, harness: HarnessModel) -> None:
    pairs = [("The capital of Italy is", " Rome"), ("The capital of Italy is", " a green apple")]
    got = harness.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (context, text), (found, _) in zip(pairs, got, strict=True):
        ids = model.tokenizer.encode(context)
        rest = model.tokenizer.encode(context + text)[len(ids) :]
        assert found == logprob(model, ids, rest)


def test_an_empty_context_begins_with_the_end_of_text(model: Model, harness: HarnessModel) -> None:
    [(found, _)] = harness.loglikelihood(requests("loglikelihood", ("", "Once upon")), True)
    ids = model.tokenizer.encode("Once upon")
    assert found == logprob(model, [harness.eot_token_id], ids)


def test_a_rolling_loglikelihood_scores_every_token_once(
    model: Model, harness: HarnessModel
) -> None:
    short, long = "Once upon a time.", "There was a king who had three sons. " * 20
    got = harness.loglikelihood_rolling(requests("loglikelihood_rolling", (short,), (long,)))
    ids = model.tokenizer.encode(short)
    assert got[0] == logprob(model, [harness.eot_token_id], ids)
    assert len(model.tokenizer.encode(long)) > 2 * CONTEXT
    assert got[1] < got[0]


def test_what_is_too_long_loses_its_beginning_with_a_warning(
    harness: HarnessModel, caplog: pytest.LogCaptureFixture
) -> None:
    context = "one two three four five " * 40
    with caplog.at_level(logging.WARNING):
        [(found, _)] = harness.loglikelihood(requests("loglikelihood", (context, " six")), True)
    assert found < 0
    assert "is cut to its last" in caplog.text
    with pytest.raises(UsageError, match="a continuation fills the context"):
        harness.loglikelihood(requests("loglikelihood", ("a", context)), True)


def test_answers_in_common_passes_are_those_of_each_alone(
    model: Model, harness: HarnessModel
) -> None:
    prompts = ["The king", "Once upon a time", "A river is", "In the morning", "She said"]
    given = {"until": ["."], "max_gen_toks": 12}
    got = harness.generate_until(requests("generate_until", *((p, given) for p in prompts)))
    for prompt, answer in zip(prompts, got, strict=True):
        pieces = model.generate(prompt, max_tokens=12, temperature=0.0, stop=["."])
        assert answer == "".join(piece.text for piece in pieces)
        assert "." not in answer


def test_sampling_options_of_a_task() -> None:
    greedy = sampling_of({"until": "\n\n", "temperature": 0.7, "do_sample": False})
    assert (greedy.temperature, greedy.max_tokens, greedy.stop) == (0.0, 256, ("\n\n",))
    drawn = sampling_of({"do_sample": True, "top_p": 0.9, "max_gen_toks": 7, "until": [""]})
    assert (drawn.temperature, drawn.top_p, drawn.max_tokens, drawn.stop) == (1.0, 0.9, 7, ())


def test_chats_go_through_the_models_template(model: Model, harness: HarnessModel) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    assert harness.apply_chat_template(chat) == model.chat_template.render(chat)
    assert harness.chat_template(True) == harness.tokenizer_name


@pytest.mark.slow
def test_the_harness_evaluates_a_task(harness: HarnessModel, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the harness is not wholly installed")
    rows = [{"q": "The capital of Italy is", "a": ["Rome", "seven"], "gold": 0}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ours.yaml").write_text(
        f"""task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{a}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the harness's own
        found = run_tasks(harness, ["ours"], include=tmp_path)
        with pytest.raises(UsageError, match="unknown task; got nothing-like-it"):
            run_tasks(harness, ["nothing-like-it"], include=tmp_path)
    assert found["ours"]["acc,none"] in (0.0, 1.0)
