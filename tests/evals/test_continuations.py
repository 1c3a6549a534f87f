"""Log-likelihoods of continuations: those of the plain forward pass, in whatever company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.errors import UsageError
from flashmoe.evals import perplexity
from flashmoe.evals.continuations import groups, score_continuations
from flashmoe.evals.perplexity import log_softmax

REQUESTS = [
    ([5, 6, 7], [8, 9]),
    ([5, 6, 7, 8], [10]),
    ([5, 6, 7], [8, 10]),
    (list(range(100, 160)), [3]),
    ([1], list(range(20, 45))),
]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with flashmoe.load(context_length=128) as loaded:
        yield loaded


def plain(model: Model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logs = log_softmax(model.logits(context + continuation[:-1])[len(context) - 1 :])
    chosen = logs[np.arange(len(continuation)), continuation]
    return float(chosen.sum()), bool((logs.argmax(axis=1) == continuation).all())


@pytest.mark.parametrize("by_layers", [True, False])
def test_scores_are_those_of_each_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch, by_layers: bool
) -> None:
    monkeypatch.setattr(perplexity, "can_sweep", lambda engine: by_layers)
    found = score_continuations(model, REQUESTS)
    assert [(score.logprob, score.greedy) for score in found] == [
        plain(model, *request) for request in REQUESTS
    ]


def test_the_likeliest_continuation_is_greedy(model: Model) -> None:
    context = [5, 6, 7]
    best = int(model.logits(context)[-1].argmax())
    scores = score_continuations(model, [(context, [best]), (context, [best - 1])])
    assert [score.greedy for score in scores] == [True, False]


def test_what_differs_in_the_last_token_only_is_run_once(model: Model) -> None:
    model.restart_stats()
    score_continuations(model, [([5, 6, 7], [n]) for n in range(10, 14)])
    assert model.stats.prompt_tokens == 4  # three, and the column of the last targets


def test_groups_have_little_padding() -> None:
    sequences = [(0,) * n for n in (100, 99, 98, 40, 39, 3)]
    assert [[len(one) for one in group] for group in groups(sequences)] == [
        [100, 99, 98],
        [40, 39],
        [3],
    ]


@pytest.mark.parametrize("request_", [([], [1]), ([1], [])])
def test_nothing_to_score_is_refused(model: Model, request_: tuple[list[int], list[int]]) -> None:
    with pytest.raises(UsageError, match="nothing to score"):
        score_continuations(model, [request_])
