"""Sketches of texts: what they find of one text in another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.errors import PackError
from flashmoe.text.shingles import LEAST_WORDS, WORDS, Sketch, overlap, shingles, sketch


def words(count: int, seed: int) -> str:
    """Text of random words."""
    return " ".join(f"w{n}" for n in np.random.default_rng(seed).integers(0, 1 << 40, count))


def test_every_run_of_13_words_is_a_shingle() -> None:
    assert len(list(shingles(words(WORDS + 4, 0)))) == 5
    assert list(shingles("One, two; THREE four's five six")) == ["one two three four s five six"]
    assert list(shingles(" ".join(["few"] * (LEAST_WORDS - 1)))) == []


def test_where_words_have_no_blanks_a_character_is_one() -> None:
    assert len(list(shingles("天地玄黃宇宙洪荒日月盈昃辰宿列張"))) == 16 - WORDS + 1


def test_a_text_is_found_in_itself_and_not_in_another() -> None:
    text, other = (sketch([words(500, seed)], kept=None) for seed in (1, 2))
    assert overlap(text, text).share == 1
    assert overlap(text, other).shared == 0


def test_a_sample_of_shingles_estimates_the_share() -> None:
    secret, own = words(1000, 1), words(1000, 2)
    calibration = sketch([words(20_000, 3) + " " + secret], kept=2000)
    found = overlap(sketch([own, secret], kept=None), calibration)
    assert not calibration.whole
    assert found.sampling == pytest.approx(10.5, abs=0.1)
    assert found.looked_at < 2000 / 5
    assert found.share == pytest.approx(0.5, abs=0.15)


def test_no_shingle_crosses_from_one_text_to_the_next() -> None:
    parts = words(WORDS, 1), words(WORDS, 2)
    assert sketch(parts).total == 2


@given(
    st.lists(st.integers(0, (1 << 48) - 1), min_size=1, max_size=40, unique=True),
    st.integers(0, 100),
)
def test_a_sketch_survives_being_text(hashes: list[int], more: int) -> None:
    before = Sketch(np.array(sorted(hashes), np.uint64), len(hashes) + more)
    after = Sketch.decode(before.encode(), "here")
    np.testing.assert_array_equal(after.hashes, before.hashes)
    assert (after.total, after.whole) == (before.total, before.whole)


@pytest.mark.parametrize("text", ["", "4:", "x:AAAA", "4:AAAA", "4:****", "0:AAAAAAAA"])
def test_text_that_is_no_sketch_is_refused(text: str) -> None:
    with pytest.raises(PackError, match="shingles are damaged"):
        Sketch.decode(text, "here")
