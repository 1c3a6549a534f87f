from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashmoe.generate.passes import FIRST_CHUNK, PassTimes, share_rows

prompts = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), min_size=1, max_size=8)


@given(prompts, st.integers(1, 30).map(lambda n: 64 * n))
def test_shares_fit_end_well_and_move_somebody(waiting: list[tuple[int, int]], rows: int) -> None:
    shares = share_rows(waiting, rows)
    assert 0 < sum(shares) <= rows
    for (position, tokens), share in zip(waiting, shares, strict=True):
        assert 0 <= share <= tokens
        assert share in (0, tokens) or (position + share) % 64 == 0


def test_short_prompts_leave_their_share_to_the_long() -> None:
    assert share_rows([(0, 1000), (0, 10), (0, 20)], 256) == [192, 10, 20]


def test_where_shares_are_too_small_the_shortest_gets_all() -> None:
    assert share_rows([(0, 1000), (0, 100), (0, 200)], 64) == [0, 64, 0]
    assert share_rows([(0, 100), (0, 100), (0, 100)], 64) == [64, 0, 0]


def test_nothing_is_known_before_a_pass_was_timed() -> None:
    times = PassTimes()
    assert times.estimate(1) == float("inf")
    assert times.longest(4096, 1.0) == FIRST_CHUNK


def test_estimates_grow_in_proportion_at_most() -> None:
    times = PassTimes()
    times.book(64, 2.0)
    assert times.estimate(8) == 2.0
    assert times.estimate(128) == 4.0
    times.book(1024, 4.0)
    assert times.estimate(512) == 4.0
    assert times.longest(4096, 8.0) == 2048
    assert times.longest(4096, 0.1) == 64
