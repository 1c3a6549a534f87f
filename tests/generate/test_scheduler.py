"""Sequences that share passes: each gives the bits of its request alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.bench.concurrency import ForcedIds
from flashmoe.errors import ContextLengthError, StorageError, UsageError
from flashmoe.generate.request import Failed, Prefill
from flashmoe.store.packed import PackedModel
from tests.support.fake_reader import FakeReader, Fault
from tests.support.packs import load_with, some_ids, transcript
from tests.support.serving import TOKENIZER, Told, ask, run_all, scheduler_of
from tests.support.tolerances import LOGPROB_ATOL

LENGTHS = [150, 1, 64, 63, 130, 20, 3, 100]
PROMPTS = [some_ids(n, seed) for seed, n in enumerate(LENGTHS)]


@pytest.fixture
def model(tiny: Path) -> Iterator[Model]:
    with flashmoe.load(tiny, cache="50%", readers=1, parallel=8) as model:
        yield model


def alone(model: Model, prompts: list[list[int]] = PROMPTS) -> list[Told]:
    return [run_all(scheduler_of(model), [ask(prompt)])[0] for prompt in prompts]


def test_alone_it_is_a_session(model: Model) -> None:
    expected = transcript(model, PROMPTS[0], 8)
    (told,) = run_all(scheduler_of(model), [ask(PROMPTS[0], tokens=9)])
    assert told.ids == expected.ids
    rows = np.vstack([expected.prompt[-1:], expected.steps]).astype(np.float64)
    totals = np.log(np.exp(rows).sum(axis=1))
    wanted = rows[np.arange(9), expected.ids] - totals
    np.testing.assert_allclose([t.logprob for t in told.tokens], wanted, atol=LOGPROB_ATOL)
    assert told.finished.reason == "length"


@pytest.mark.parametrize(("parallel", "apart"), [(2, 0), (3, 1), (8, 0), (8, 3)])
@pytest.mark.parametrize("gap", [0.0, 1.0, 1e9])
def test_neighbours_do_not_change_a_bit(
    model: Model, parallel: int, apart: int, gap: float
) -> None:
    expected = alone(model)
    scheduler = scheduler_of(model, parallel, gap=gap)
    for got, want in zip(
        run_all(scheduler, [ask(p) for p in PROMPTS], apart), expected, strict=True
    ):
        assert got.bits == want.bits


def test_answers_go_on_between_the_layers_of_a_prompt(model: Model) -> None:
    """With no gap allowed, a running answer gets tokens while the prompt's pass is under way."""
    scheduler = scheduler_of(model, 2, gap=0.0)
    first, second = Told(), Told()
    scheduler.start(ask(PROMPTS[6], tokens=40), first.events.append)
    scheduler.step()
    before = len(first.ids)
    scheduler.start(ask(PROMPTS[0]), second.events.append)
    scheduler.step()
    assert second.ids or isinstance(second.events[-1], Prefill)
    assert len(first.ids) > before + 1


def test_a_short_prompt_joins_the_pass_of_the_answers(model: Model) -> None:
    scheduler = scheduler_of(model, 2, gap=1e9)
    first, second = Told(), Told()
    scheduler.start(ask(PROMPTS[6], tokens=40), first.events.append)
    scheduler.step()
    scheduler.start(ask(PROMPTS[5]), second.events.append)
    scheduler.step()
    assert (len(first.ids), len(second.ids)) == (2, 1)


def test_prompt_scores_are_the_logits_of_the_prompt(model: Model) -> None:
    prompt = PROMPTS[0]
    request = ask(prompt, tokens=1, prompt_logprobs=2)
    told = run_all(scheduler_of(model, 2), [request, ask(PROMPTS[4])])[0]
    rows = model.logits(prompt).astype(np.float64)
    totals = np.log(np.exp(rows).sum(axis=1))
    wanted = rows[np.arange(len(prompt) - 1), prompt[1:]] - totals[:-1]
    assert told.scored[0].logprob is None
    got = [t.logprob for t in told.scored[1:]]
    np.testing.assert_allclose(np.array(got, dtype=float), wanted, atol=LOGPROB_ATOL)
    assert [t.id for t in told.scored] == prompt
    best = rows.argmax(axis=1)[:-1].tolist()
    assert [t.top[0].id for t in told.scored[1:]] == best


def test_a_prompt_may_be_run_without_an_answer(model: Model) -> None:
    (told,) = run_all(scheduler_of(model), [ask(PROMPTS[2], answer=False, prompt_logprobs=0)])
    assert told.finished.reason == "length"
    assert told.ids == []
    assert len(told.scored) == 64


def test_seeds_are_each_sequences_own(model: Model) -> None:
    requests = [ask(PROMPTS[0], temperature=1.5, seed=seed) for seed in (1, 2, 1, 3)]
    a, b, c, d = run_all(scheduler_of(model, 4), requests)
    assert a.ids == c.ids == run_all(scheduler_of(model), [requests[0]])[0].ids
    assert len({tuple(t.ids) for t in (a, b, d)}) == 3


def test_a_cancelled_prompt_stops_within_its_pass(model: Model) -> None:
    scheduler = scheduler_of(model, 2)
    told = Told()
    sequence = scheduler.start(ask(PROMPTS[0]), told.events.append)
    layers = []

    def cancel_after_the_first() -> None:
        layers.append(1)
        sequence.cancelled = True

    scheduler.between = cancel_after_the_first
    scheduler.step()
    assert told.finished.reason == "cancelled"
    assert len(layers) == 1
    assert scheduler.running == []


def test_a_cancelled_answer_leaves_the_others_alone(model: Model) -> None:
    scheduler = scheduler_of(model, 2)
    gone, stays = Told(), Told()
    sequence = scheduler.start(ask(PROMPTS[0]), gone.events.append)
    scheduler.start(ask(PROMPTS[4]), stays.events.append)
    for _ in range(4):
        scheduler.step()
    sequence.cancelled = True
    while scheduler.running:
        scheduler.step()
    assert gone.finished.reason == "cancelled"
    assert stays.bits == alone(model, [PROMPTS[4]])[0].bits


def test_the_context_ends_an_answer(tiny: Path) -> None:
    with flashmoe.load(tiny, cache="all", context_length=70) as model:
        (told,) = run_all(scheduler_of(model), [ask(PROMPTS[2], tokens=50)])
    assert told.finished.reason == "length"
    assert len(told.ids) == 70 - 64 + 1


def test_what_cannot_run_is_refused(model: Model) -> None:
    scheduler = scheduler_of(model)
    with pytest.raises(UsageError, match="empty"):
        scheduler.check(ask([]))
    with pytest.raises(UsageError, match="expected 0 to 299, got 300"):
        scheduler.check(ask([1, 300]))
    with pytest.raises(ContextLengthError, match="at most 256 tokens, got 257"):
        scheduler.check(ask([1] * 257))


def test_usage_adds_up(model: Model) -> None:
    told = run_all(scheduler_of(model, 8), [ask(p) for p in PROMPTS])
    for one, prompt in zip(told, PROMPTS, strict=True):
        usage = one.finished.usage
        assert usage.prompt_tokens == len(prompt)
        assert usage.completion_tokens == len(one.ids) == 8
        assert usage.prefill_seconds > 0
        assert usage.decode_seconds > 0
    shares = sum(u.expert_hits + u.expert_misses for u in (t.finished.usage for t in told))
    stats = model.stats
    assert abs(shares - stats.cache_hits - stats.cache_misses) <= len(told)


def test_a_read_error_ends_those_that_meet_it(tiny: Path, family: str) -> None:
    """Where states can be run again; a delta rule's cannot, and all of its pass fail."""
    reader = FakeReader()
    prompts = [some_ids(2, seed) for seed in range(6)]
    with load_with(tiny, make_reader=lambda threads: reader, cache=0, parallel=6) as model:
        good = alone(model, prompts)
        extent = PackedModel.open(tiny).extent(1, 3)
        reader.faults[extent.offset] = Fault.EIO
        bad = alone(model, prompts)
        together = run_all(scheduler_of(model, 6), [ask(p) for p in prompts])
    failing = [isinstance(told.events[-1], Failed) for told in bad]
    assert any(failing)
    for got, want, fails in zip(together, good, failing, strict=True):
        if fails or family == "qwen3_5_moe":
            assert isinstance(got.failed.error, StorageError)
            assert got.bits == want.bits[: len(got.bits)]
        else:
            assert got.bits == want.bits


def test_a_constraint_is_a_sequences_own(model: Model) -> None:
    free, bound = run_all(
        scheduler_of(model, 2),
        [ask(PROMPTS[4]), ask(PROMPTS[4], mask=ForcedIds(iter([7, 8, 9] * 9)))],
    )
    assert bound.ids == [7, 8, 9, 7, 8, 9, 7, 8]
    assert free.bits == alone(model, [PROMPTS[4]])[0].bits
    # The same distribution: log probabilities are of the model, not of the constraint.
    assert bound.tokens[0].top == free.tokens[0].top


def test_a_stop_token_and_a_stop_string_end_an_answer(model: Model) -> None:
    ids = alone(model, [PROMPTS[4]])[0].ids
    (told,) = run_all(scheduler_of(model), [ask(PROMPTS[4], stop_ids=frozenset([ids[3]]))])
    assert told.ids == ids[: ids.index(ids[3]) + 1]
    assert told.finished.reason == "stop"
    text = TOKENIZER.decode([50])
    mask = ForcedIds(iter([40, 50, 60]))
    (told,) = run_all(scheduler_of(model), [ask(PROMPTS[4], mask=mask, stop=[text])])
    assert told.ids == [40, 50]
    assert told.text == TOKENIZER.decode([40])
    assert (told.finished.reason, told.finished.stop_string) == ("stop", text)
