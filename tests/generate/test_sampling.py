from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flashmoe.errors import NumericError, UsageError
from flashmoe.generate.sampling import Sampler, SamplingOptions
from tests.support.tolerances import LOGPROB_ATOL

Floats = NDArray[np.float32]
scores = st.lists(st.integers(-20, 20), min_size=2, max_size=40)


def logits(values: list[float] | list[int]) -> Floats:
    return np.array(values, dtype=np.float32)


def drawn(x: Floats, times: int = 300, history: tuple[int, ...] = (), **options: Any) -> set[int]:
    sampler = Sampler(SamplingOptions(**{"temperature": 1.0, "seed": 1} | options))
    return {sampler.sample(x, history)[0] for _ in range(times)}


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    assert Sampler(SamplingOptions()).sample(logits([1, 3, 3, 2]), [])[0] == 1


def test_logprob_is_of_the_plain_softmax_whatever_the_filters() -> None:
    x = logits([1, 2, 3])
    expected = 3 - np.log(np.exp([1.0, 2.0, 3.0]).sum())
    for options in (SamplingOptions(), SamplingOptions(temperature=0.1, top_k=1, seed=0)):
        token, logprob = Sampler(options).sample(x, [])
        assert token == 2
        assert logprob == pytest.approx(expected, abs=LOGPROB_ATOL)
    token, logprob = Sampler(SamplingOptions(repeat_penalty=9)).sample(x, [2])
    assert token == 1
    assert logprob == pytest.approx(expected - 1, abs=LOGPROB_ATOL)


def test_logits_are_not_changed() -> None:
    x = logits([1, 2, 3])
    Sampler(SamplingOptions(temperature=2, repeat_penalty=2, top_k=2, seed=0)).sample(x, [0, 1])
    assert x.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(NumericError, match="token 1: logits are not finite"):
        Sampler(SamplingOptions(temperature=temperature)).sample(logits([0, bad, bad]), [])


@given(scores, st.integers(0, 2**64), st.floats(0.1, 5))
def test_a_seed_repeats_its_draws(values: list[int], seed: int, temperature: float) -> None:
    options = SamplingOptions(temperature=temperature, seed=seed)
    first, second = Sampler(options), Sampler(options)
    x = logits(values)
    assert [first.sample(x, []) for _ in range(5)] == [second.sample(x, []) for _ in range(5)]


def test_draws_are_frozen() -> None:
    """The same on every platform and in every version: a seed is a promise."""
    sampler = Sampler(SamplingOptions(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02, seed=42))
    x = np.linspace(0, 6, 100, dtype=np.float32)
    tokens = [sampler.sample(x, [])[0] for _ in range(12)]
    assert tokens == [96, 90, 98, 95, 77, 99, 96, 97, 79, 90, 88, 99]


def test_without_a_seed_draws_differ() -> None:
    x = np.zeros(1000, dtype=np.float32)
    runs = {Sampler(SamplingOptions(temperature=1)).sample(x, [])[0] for _ in range(20)}
    assert len(runs) > 1


def test_draws_follow_the_softmax() -> None:
    x = logits(list(np.log([0.5, 0.3, 0.2])))
    sampler = Sampler(SamplingOptions(temperature=1, seed=3))
    count = Counter(sampler.sample(x, [])[0] for _ in range(5000))
    for token, probability in enumerate([0.5, 0.3, 0.2]):
        # Five standard deviations of a binomial share.
        slack = 5 * np.sqrt(probability * (1 - probability) / 5000)
        assert abs(count[token] / 5000 - probability) < slack


@given(scores, st.floats(1e-300, 1e-3))
def test_a_tiny_temperature_takes_a_largest(values: list[int], temperature: float) -> None:
    x = logits(values)
    (token,) = drawn(x, times=1, temperature=temperature)
    assert x[token] == x.max()


def test_top_k_keeps_the_k_largest_and_breaks_ties_by_id() -> None:
    assert drawn(logits([0, 2, 1, 2, 2]), top_k=2) == {1, 3}
    assert drawn(logits([0, 2, 1]), top_k=9) == {0, 1, 2}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    x = logits(list(np.log([0.1, 0.4, 0.3, 0.2])))
    assert drawn(x, top_p=0.39) == {1}
    assert drawn(x, top_p=0.69) == {1, 2}
    assert drawn(x, top_p=0.71) == {1, 2, 3}
    assert drawn(x, top_p=1e-9) == {1}


def test_min_p_is_relative_to_the_likeliest() -> None:
    x = logits(list(np.log([0.1, 0.4, 0.3, 0.2])))
    assert drawn(x, min_p=0.49) == {1, 2, 3}
    assert drawn(x, min_p=1) == {1}


def test_top_p_counts_what_top_k_left() -> None:
    x = logits(list(np.log([0.4, 0.3, 0.2, 0.1])))
    # Of the two that are left the first has 4/7 = 0.571.
    assert drawn(x, top_k=2, top_p=0.56) == {0}
    assert drawn(x, top_k=2, top_p=0.58) == {0, 1}


def nucleus(x: Floats, p: float) -> set[int]:
    """Top-p by the book: sort everything, add up, stop."""
    probs = np.exp(x.astype(np.float64) - x.max())
    probs /= probs.sum()
    kept, mass = set(), 0.0
    for token in sorted(range(x.size), key=lambda i: (-probs[i], i)):
        kept.add(token)
        mass += probs[token]
        if mass >= p:
            break
    return kept


@given(scores, st.floats(0.01, 0.99))
def test_top_p_never_leaves_the_nucleus(values: list[int], p: float) -> None:
    x = logits(values) / np.float32(7)
    assert drawn(x, times=30, top_p=p) <= nucleus(x, p)


def test_repeat_penalty_works_on_both_signs_and_once_per_token() -> None:
    def best(values: list[float], history: list[int], penalty: float) -> int:
        return Sampler(SamplingOptions(repeat_penalty=penalty)).sample(logits(values), history)[0]

    assert best([3.0, 2.0], [0], 1.4) == 0
    assert best([3.0, 2.0], [0], 1.6) == 1
    assert best([3.0, 2.0], [0, 0, 0], 1.4) == 0
    assert best([-2.0, -3.0], [0], 1.4) == 0
    assert best([-2.0, -3.0], [0], 1.6) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", None),
        ("temperature", -0.1),
        ("temperature", np.nan),
        ("temperature", np.inf),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repeat_penalty", 0),
        ("repeat_penalty", np.inf),
        ("seed", -1),
        ("seed", 1.5),
        ("stop", [""]),
        ("stop", [3]),
    ],
)
def test_a_bad_option_is_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"^{name}: wrong value; expected ") as caught:
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_one_stop_text_may_stand_alone() -> None:
    assert SamplingOptions(stop="END").stop == ("END",)
    assert SamplingOptions(stop=["a", "b"]).stop == ("a", "b")
