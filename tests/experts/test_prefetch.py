"""The controller against simulated decodes: it must find what pays, and not flap."""

from __future__ import annotations

import random

import pytest

from flashmoe.experts.prefetch import (
    FEWEST_MISSES,
    SHORTEST_REST,
    TRIAL,
    WINDOW,
    Prefetch,
    PrefetchControl,
)

TRIAL_TOKENS = WINDOW * len(TRIAL)


def decode(
    control: PrefetchControl,
    tokens: int,
    *,
    with_guesses: float = 0.2,
    without: float = 0.25,
    misses: int = 50,
    noise: float = 0.0,
    drift: float = 0.0,
) -> list[bool]:
    """Run tokens of these seconds; returns for each whether it was decoded with guesses."""
    chance, made = random.Random(1), []
    for token in range(tokens):
        made.append(control.on)
        seconds = (with_guesses if control.on else without) * (1 + drift * token)
        control.book(seconds * (1 + chance.uniform(-noise, noise)), misses)
    return made


def test_a_gain_is_found_and_kept() -> None:
    made = decode(PrefetchControl("auto"), 1000, noise=0.1)
    assert made[:TRIAL_TOKENS] == [on for on in TRIAL for _ in range(WINDOW)]
    assert all(made[TRIAL_TOKENS : TRIAL_TOKENS + SHORTEST_REST])
    assert made.count(False) <= 4 * 2 * WINDOW


def test_a_loss_is_found_and_kept() -> None:
    made = decode(PrefetchControl("auto"), 1000, with_guesses=0.3, noise=0.1)
    assert not any(made[TRIAL_TOKENS : TRIAL_TOKENS + SHORTEST_REST])
    assert made.count(True) <= 4 * 2 * WINDOW


def test_no_gain_means_off() -> None:
    made = decode(PrefetchControl("auto"), TRIAL_TOKENS + 50, without=0.2)
    assert not any(made[TRIAL_TOKENS:])


@pytest.mark.parametrize("drift", [0.01, -0.01])
def test_what_changes_evenly_favours_neither(drift: float) -> None:
    made = decode(PrefetchControl("auto"), 50, without=0.2 * 1.001, drift=drift)
    assert not any(made[TRIAL_TOKENS:])


def test_one_slow_token_decides_nothing() -> None:
    control = PrefetchControl("auto")
    decode(control, 3)
    control.book(60.0, 50)
    assert all(decode(control, TRIAL_TOKENS + 20)[TRIAL_TOKENS:])


def test_a_changed_world_is_noticed() -> None:
    control = PrefetchControl("auto")
    decode(control, TRIAL_TOKENS + 10)
    made = decode(control, 2 * SHORTEST_REST + 2 * TRIAL_TOKENS, with_guesses=0.3)
    assert not made[-1]


def test_trials_become_rarer_while_the_verdict_stands() -> None:
    made = decode(PrefetchControl("auto"), 20_000)
    assert made.count(False) < 20_000 * 0.01


def test_nothing_is_tried_while_nothing_is_missed() -> None:
    control = PrefetchControl("auto")
    made = decode(control, 500, misses=0)
    assert not any(made[1:])
    made = decode(control, 200, misses=int(10 * FEWEST_MISSES))
    assert any(made)
    assert made[-1]


@pytest.mark.parametrize(("mode", "on"), [("on", True), ("off", False)])
def test_a_fixed_choice_is_kept(mode: Prefetch, on: bool) -> None:
    control = PrefetchControl(mode)
    made = decode(control, 300, with_guesses=0.3 if on else 0.1)
    assert set(made) == {on}
    assert control.on_for_prompt is on
