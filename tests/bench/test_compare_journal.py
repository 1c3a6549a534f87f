"""What a comparison keeps of what it measured, and when it expects to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.bench.compare.forecast import Forecast
from flashmoe.bench.compare.journal import Journal

HERE = {"machine": "a", "program": "1"}


def test_what_was_added_is_found_by_a_later_command(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    first = Journal(file, HERE, resume=False, session="one")
    assert first.add({"row": "a"}, {"seconds": 1.5}) == {"seconds": 1.5}
    later = Journal(file, HERE, resume=True, session="two")
    assert later.find({"row": "b"}) is None
    assert later.find({"row": "a"}) == {"seconds": 1.5}
    assert later.sessions == {"one"}


@pytest.mark.parametrize(("facts", "resume"), [(HERE, False), ({**HERE, "program": "2"}, True)])
def test_nothing_is_found(tmp_path: Path, facts: dict[str, str], resume: bool) -> None:
    Journal(tmp_path / "lines", HERE, resume=False).add({"row": "a"}, {"seconds": 1.5})
    assert Journal(tmp_path / "lines", facts, resume).find({"row": "a"}) is None


def test_the_latest_value_counts(tmp_path: Path) -> None:
    for seconds in (1, 2):
        Journal(tmp_path / "lines", HERE, resume=False).add({}, {"seconds": seconds})
    assert Journal(tmp_path / "lines", HERE, resume=True).find({}) == {"seconds": 2}


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    Journal(file, HERE, resume=False).add({"row": "a"}, {})
    file.write_bytes(file.read_bytes() + b'{"what": {"ro')
    again = Journal(file, HERE, resume=True)
    assert again.find({"row": "a"}) == {}
    again.add({"row": "b"}, {})
    assert Journal(file, HERE, resume=True).find({"row": "b"}) == {}


def test_jobs_take_as_long_as_those_of_their_name() -> None:
    forecast = Forecast(["decode_25"] * 3)
    before = forecast.minutes
    forecast.done("decode_25", 60.0)
    assert forecast.minutes == 2.0 != before


def test_unlike_jobs_are_expected_at_the_same_pace() -> None:
    jobs = ["decode_ram", "decode_25", "decode_50"]
    typical, slow = Forecast(jobs[1:]).minutes, Forecast(jobs)
    usual = Forecast(jobs).minutes - typical
    slow.done("decode_ram", 2 * 60 * usual)
    assert slow.minutes == pytest.approx(2 * typical)


def test_what_is_skipped_says_nothing_of_the_pace() -> None:
    forecast = Forecast(["decode_ram", "decode_25"])
    forecast.skip("decode_ram")
    assert forecast.minutes == Forecast(["decode_25"]).minutes
