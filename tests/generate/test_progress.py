"""The text that follows a long prompt."""

from __future__ import annotations

from flashmoe.generate.progress import PromptMeter


def texts(steps: list[tuple[float, int]], total: int) -> list[str]:
    """What is shown when `done` tokens are done at each time."""
    times = iter([time for time, _ in steps])
    said: list[str] = []
    meter = PromptMeter(said.append, clock=lambda: next(times))
    for _, done in steps:
        meter(done, total)
    return said


def test_speed_and_time_left() -> None:
    assert texts([(5, 0), (15, 100), (25, 1000)], 1000) == [
        "0 of 1000 tokens",
        "100 of 1000 tokens, 10.0 tok/s, 90 s left",
        "1000 of 1000 tokens, 50.0 tok/s, 0 s left",
    ]


def test_long_waits_are_in_minutes() -> None:
    assert texts([(0, 0), (10, 10)], 360)[-1].endswith("5:50 min left")


def test_not_more_often_than_anyone_reads() -> None:
    said = texts([(0, 0), (0.01, 1), (0.02, 2), (0.2, 3), (0.21, 4), (0.22, 5)], 5)
    assert [text.split()[0] for text in said] == ["0", "3", "5"]


def test_every_prompt_starts_anew() -> None:
    said = texts([(0, 0), (1, 10), (100, 0), (101, 10)], 20)
    assert said[1] == said[3] == "10 of 20 tokens, 10.0 tok/s, 1 s left"
