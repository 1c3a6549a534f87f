"""The controller against simulated decodes: it must find what pays, and not flap."""

from __future__ import annotations

import random
from statistics import mean
from typing import Any

import pytest

from flashmoe.experts.prefetch import (
    FEWEST_MISSES,
    REST,
    VOTES,
    WINDOW,
    Prefetch,
    PrefetchControl,
)

FIRST_REST = REST[True][0]
SURE_TRIAL = (2 * VOTES + 1) * WINDOW
"""Tokens of a trial whose votes all agree and none is clear."""
CLEAR_TRIAL = 3 * WINDOW
"""Tokens of a trial that its first vote ends."""
LONGEST_TRIAL = (2 * (2 * VOTES - 1) + 1) * WINDOW
SEEDS = range(20)


def decode(
    control: PrefetchControl,
    tokens: int,
    *,
    with_guesses: float = 0.2,
    without: float = 0.25,
    misses: int = 50,
    drift: float = 0.0,
) -> list[bool]:
    """Run tokens of these seconds; returns for each whether it was decoded with guesses."""
    made = []
    for token in range(tokens):
        made.append(control.on)
        seconds = (with_guesses if control.on else without) * (1 + drift * token)
        control.book(seconds, misses)
    return made


def noisy_share(
    gain: float,
    seed: int,
    *,
    tokens: int = 2000,
    disk: float = 0.0,
    misses: tuple[float, float] = (157, 5),
    reading: float = 0.65,
) -> float:
    """Share of tokens decoded with guesses, where those without take 1 + gain times as long.

    Each token's time is off by 15 % (standard deviation). disk: standard deviation of the step
    from token to token of a rate that wanders. misses: mean and deviation per token. reading: the
    share of a token's time that goes with its misses.
    """
    chance, control = random.Random(seed), PrefetchControl("auto")
    guessing, wander = 0, 0.0
    for _ in range(tokens):
        wander = 0.98 * wander + chance.gauss(0, disk)
        missed = max(0, round(chance.gauss(*misses)))
        seconds = 0.25 * (1 - reading + reading * missed / misses[0]) * (1 + wander)
        guessing += control.on
        seconds *= 1 if control.on else 1 + gain
        control.book(seconds * max(0.3, chance.gauss(1, 0.15)), missed)
    return guessing / tokens


WORLDS: dict[str, dict[str, Any]] = {
    "noise alone": {},
    "a disk that wanders by 20 %": {"disk": 0.04},
    "tokens of unlike misses": {"misses": (157, 50)},
    "few misses": {"misses": (8, 4), "reading": 0.1},
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_gain_of_a_tenth_is_found_in_noise(world: dict[str, Any]) -> None:
    shares = [noisy_share(0.1, seed, **world) for seed in SEEDS]
    assert mean(shares) > 0.9


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_a_loss_of_a_tenth_is_found_in_noise(world: dict[str, Any]) -> None:
    shares = [noisy_share(-0.1, seed, **world) for seed in SEEDS]
    assert mean(shares) < 0.15


def test_a_gain_is_kept() -> None:
    made = decode(PrefetchControl("auto"), WINDOW + SURE_TRIAL + FIRST_REST, with_guesses=0.24)
    assert made.count(False) == VOTES * WINDOW
    assert all(made[WINDOW + SURE_TRIAL :])


def test_a_clear_gain_needs_one_vote() -> None:
    made = decode(PrefetchControl("auto"), WINDOW + CLEAR_TRIAL + FIRST_REST)
    assert made.count(False) == WINDOW


def test_a_lost_trial_turns_nothing_off_and_a_second_one_does() -> None:
    control = PrefetchControl("auto")
    decode(control, WINDOW)
    first = decode(control, SURE_TRIAL, with_guesses=0.3)
    assert first.count(False) == VOTES * WINDOW
    made = decode(control, SURE_TRIAL + REST[False][0], with_guesses=0.3)
    assert not any(made[SURE_TRIAL:])


def test_a_lost_trial_is_forgotten_after_one_that_was_won() -> None:
    control = PrefetchControl("auto")
    decode(control, WINDOW)
    decode(control, SURE_TRIAL, with_guesses=0.3)
    decode(control, CLEAR_TRIAL)
    assert all(decode(control, FIRST_REST))
    decode(control, SURE_TRIAL, with_guesses=0.3)
    assert all(decode(control, WINDOW))  # the first window of a second trial, not a rest


def test_rests_are_shorter_while_off() -> None:
    control = PrefetchControl("auto")
    made = decode(control, WINDOW + 2 * SURE_TRIAL + REST[False][0], with_guesses=0.3)
    assert not any(made[-REST[False][0] :])
    made = decode(control, CLEAR_TRIAL + FIRST_REST)
    assert made[0]
    assert all(made[CLEAR_TRIAL:])


def test_no_gain_means_off() -> None:
    made = decode(PrefetchControl("auto"), WINDOW + 2 * SURE_TRIAL + 50, without=0.2)
    assert not any(made[-50:])


@pytest.mark.parametrize("drift", [0.005, -0.002])
def test_what_changes_evenly_favours_neither(drift: float) -> None:
    tokens = WINDOW + 2 * SURE_TRIAL + 50
    made = decode(PrefetchControl("auto"), tokens, without=0.2 * 1.001, drift=drift)
    assert not any(made[-50:])


def test_one_slow_token_decides_nothing() -> None:
    control = PrefetchControl("auto")
    decode(control, 2 * WINDOW + 2)
    control.book(60.0, 50)
    assert all(decode(control, LONGEST_TRIAL + FIRST_REST // 2)[LONGEST_TRIAL:])


def test_a_changed_world_is_noticed() -> None:
    control = PrefetchControl("auto")
    decode(control, WINDOW + CLEAR_TRIAL + 10)
    made = decode(control, 2 * FIRST_REST + 2 * SURE_TRIAL, with_guesses=0.3)
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
