from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flashmoe.generate.stop import StopStrings

# Two letters make overlaps and near misses frequent.
letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut_at_first(text: str, strings: list[str]) -> str:
    """The text before the stop string that is complete first, letter by letter."""
    for end in range(len(text) + 1):
        ending = [s for s in strings if text[:end].endswith(s)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


def split(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


@given(letters, stops, st.lists(st.integers(0, 100), max_size=8))
@example("abab", ["abab", "ba"], [])
@example("aab", ["b", "ab"], [])
def test_any_split_shows_the_text_before_the_first_stop(
    text: str, strings: list[str], cuts: list[int]
) -> None:
    stop = StopStrings(strings)
    shown = "".join(stop.push(part) for part in split(text, cuts))
    assert shown + stop.finish() == cut_at_first(text, strings)
    assert (stop.matched is not None) == any(s in text for s in strings)


@given(letters, stops)
def test_nothing_is_ever_shown_that_a_stop_would_take_back(text: str, strings: list[str]) -> None:
    stop, final = StopStrings(strings), cut_at_first(text, strings)
    shown = ""
    for letter in text:
        shown += stop.push(letter)
        assert final.startswith(shown)


@pytest.mark.parametrize(
    ("pushes", "shown"),
    [
        (["one EN"], ["one "]),
        (["one EN", "D two"], ["one ", ""]),
        (["one EN", "Z"], ["one ", "ENZ"]),
        (["EEN"], ["E"]),
        (["no"], ["no"]),
    ],
)
def test_only_a_possible_beginning_is_held(pushes: list[str], shown: list[str]) -> None:
    stop = StopStrings(["END"])
    assert [stop.push(text) for text in pushes] == shown


def test_after_a_match_everything_is_dropped() -> None:
    stop = StopStrings(["END"])
    assert stop.push("a END b") == "a "
    assert stop.matched == "END"
    assert stop.push("more") + stop.finish() == ""


def test_without_stop_strings_nothing_is_held() -> None:
    stop = StopStrings([])
    assert stop.push("all") == "all"
    assert stop.finish() == ""
