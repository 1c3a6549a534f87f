"""Ctrl-C amid a change of the cache's size: at every line, by a real signal."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from flashmoe.experts import addresses, cache, residency, room, staging
from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.interrupts import uninterrupted
from flashmoe.experts.room import CacheSize
from tests.experts.support import RECORD, TaggedSource, arena, run
from tests.support.fake_reader import FakeReader

CAPACITY = 12
WATCHED = {module.__file__ for module in (addresses, cache, residency, room, staging)}
EVERY = [(0, list(range(8))), (1, list(range(8)))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TaggedSource:
    return TaggedSource(tmp_path_factory.mktemp("experts"), 2, 8).write()


def filled(source: TaggedSource) -> ExpertCache:
    made = ExpertCache(source, arena(CAPACITY), FakeReader(1), slot_bytes=RECORD, staging=2)
    run(made, EVERY)
    made.guess(0, [0, 1])
    return made


def signal_at(line: int, work: Callable[[], object]) -> bool:
    """Runs work, with SIGINT at that line of it -> whether it had so many."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return seen >= line


def check(made: ExpertCache, source: TaggedSource) -> None:
    """Serves the right bytes, before and after it is resized again."""
    expected = [[source.record(layer, expert) for expert in ids] for layer, ids in EVERY]
    for slots in (made.slots, 3, made.capacity):
        made.resize(slots)
        assert len(made.resident()) <= slots
        assert run(made, EVERY) == expected


@pytest.mark.parametrize(("first", "then"), [(10, 4), (4, 10)])
def test_a_resize_is_whole_or_not_begun(source: TaggedSource, first: int, then: int) -> None:
    line, more = 0, True
    while more:
        line += 1
        with filled(source) as made:
            made.resize(first)
            more = signal_at(line, lambda made=made: made.resize(then))  # type: ignore[misc]
            assert made.slots in (first, then)
            check(made, source)
    assert line > 50


def test_what_was_lent_comes_back_at_the_latest_with_the_next_prompt(source: TaggedSource) -> None:
    def prompt(size: CacheSize) -> None:
        with size.lend(6):
            pass

    line, more = 0, True
    while more:
        line += 1
        with filled(source) as made:
            slots, size = made.slots, CacheSize(made, 1, lambda: None)
            more = signal_at(line, lambda size=size: prompt(size))  # type: ignore[misc]
            assert made.slots in (slots, slots - 6), f"line {line}"
            check(made, source)
            prompt(size)
            assert made.slots == slots, f"line {line}"
            check(made, source)
    assert line > 50


def test_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    after: list[str] = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            after.append("the rest of the body")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert after
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_left_alone() -> None:
    done: list[bool] = []

    def work() -> None:
        with uninterrupted():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
