"""Rotary tables, with and without YaRN."""

from __future__ import annotations

import numpy as np
import pytest

from flashmoe.checkpoint.config import Yarn
from flashmoe.layers.rope import RotaryTable, yarn_frequencies, yarn_scale
from tests.support.tolerances import EXACT, ROUNDED

# As gpt-oss is published.
YARN = Yarn(32.0, 4096, 32.0, 1.0, truncate=False, attention_factor=None)
THETA, DIM = 150000.0, 64
PLAIN = THETA ** -(np.arange(0, DIM, 2) / DIM)


def test_a_plain_table() -> None:
    cos, sin = RotaryTable(4, 100.0).at(np.array([0, 3], dtype=np.int32))
    np.testing.assert_allclose(cos, [[1, 1], np.cos([3, 0.3])], rtol=ROUNDED)
    np.testing.assert_allclose(sin, [[0, 0], np.sin([3, 0.3])], rtol=ROUNDED)


def test_fast_frequencies_stay_and_slow_ones_are_divided() -> None:
    mixed = yarn_frequencies(YARN, PLAIN, THETA)
    turns = 4096 * PLAIN / (2 * np.pi)  # within the original context
    np.testing.assert_allclose(mixed[turns > 32], PLAIN[turns > 32], rtol=EXACT)
    np.testing.assert_allclose(mixed[turns < 1], PLAIN[turns < 1] / 32, rtol=EXACT)
    between = (turns < 32) & (turns > 1)
    assert np.all((mixed < PLAIN) & (mixed > PLAIN / 32), where=between)
    assert between.any()


def test_the_ramp_may_end_at_whole_numbers() -> None:
    whole = Yarn(32.0, 4096, 32.0, 1.0, truncate=True, attention_factor=None)
    ratio = yarn_frequencies(whole, PLAIN, THETA) / PLAIN
    weights = (1 - ratio) / (1 - 1 / 32)  # of the divided frequency
    steps = np.diff(weights[(weights > 0) & (weights < 1)])
    np.testing.assert_allclose(1 / steps, np.round(1 / steps), rtol=1e-9)


@pytest.mark.parametrize(("given", "scale"), [(None, 1.3465735902799727), (0.5, 0.5)])
def test_cos_and_sin_are_scaled(given: float | None, scale: float) -> None:
    yarn = Yarn(32.0, 4096, 32.0, 1.0, truncate=False, attention_factor=given)
    assert yarn_scale(yarn) == pytest.approx(scale, rel=EXACT)
    cos, sin = RotaryTable(DIM, THETA, yarn).at(np.arange(9, dtype=np.int32))
    np.testing.assert_allclose(cos**2 + sin**2, scale**2, rtol=ROUNDED)


@pytest.mark.parametrize(
    ("mscale", "all_dim", "scale"),
    [
        (1.0, 1.0, 1.0),
        (1.0, 0.0, 1.3465735902799727),
        (0.707, 1.0, 1.2450275283279407 / 1.3465735902799727),
    ],
)
def test_the_scale_may_be_moved_into_the_scores(
    mscale: float, all_dim: float, scale: float
) -> None:
    yarn = Yarn(32.0, 4096, 32.0, 1.0, True, None, mscale, all_dim)
    assert yarn_scale(yarn) == pytest.approx(scale, rel=EXACT)


def test_a_factor_of_one_changes_nothing() -> None:
    yarn = Yarn(1.0, 4096, 32.0, 1.0, truncate=True, attention_factor=None)
    positions = np.arange(50, dtype=np.int32)
    for a, b in zip(
        RotaryTable(DIM, THETA, yarn).at(positions),
        RotaryTable(DIM, THETA).at(positions),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=ROUNDED, atol=1e-5)
