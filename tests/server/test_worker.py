"""The queue before the engine thread: order, limits, cancelling, sharing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Event as Flag
from threading import Semaphore
from time import monotonic, sleep
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import NumericError, QueueFullError, RequestError
from flashmoe.generate.request import Event, Failed, Finished, Generated, Prefill, Queued
from flashmoe.server.worker import Ticket, Worker
from tests.support.packs import some_ids
from tests.support.scripted_engine import ScriptedBatchEngine, ScriptedServedModel, answer_to
from tests.support.serving import Told, ask

TIMEOUT = 20.0


class Gate:
    """Lets layers pass one by one, or all."""

    def __init__(self) -> None:
        self._open, self._permits = Flag(), Semaphore(0)

    def __call__(self) -> None:
        while not self._open.is_set():
            if self._permits.acquire(timeout=0.01):
                return

    def let(self, layers: int) -> None:
        self._permits.release(layers)

    def open(self) -> None:
        self._open.set()


class Listener(Told):
    """Keeps events and says when the last has come."""

    def __init__(self) -> None:
        super().__init__()
        self.over = Flag()

    def __call__(self, event: Event) -> None:
        assert not self.over.is_set(), f"{event} after the last one"
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.over.set()

    def wait(self) -> Listener:
        assert self.over.wait(TIMEOUT), self.events[-3:]
        return self


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def worker(gate: Gate) -> Iterator[Worker]:
    with Worker(ScriptedServedModel(ScriptedBatchEngine(gate)), queue=2) as worker:
        yield worker
        gate.open()


def until(true: Callable[[], bool]) -> None:
    end = monotonic() + TIMEOUT
    while not true():
        assert monotonic() < end
        sleep(0.001)


def running(worker: Worker, count: int) -> None:
    until(lambda: worker.figures().running == count)


def test_an_answer_arrives(worker: Worker, gate: Gate) -> None:
    gate.open()
    told = Listener()
    worker.submit(ask([1, 2, 3], 5), told)
    assert told.wait().ids == answer_to([1, 2, 3], 5)
    assert told.finished.reason == "length"
    assert told.finished.usage.queue_seconds >= 0


def test_a_full_queue_says_when_to_come_back(worker: Worker, gate: Gate) -> None:
    for _ in range(4):  # two run, two wait
        worker.submit(ask([1, 2]), Listener())
    running(worker, 2)
    with pytest.raises(QueueFullError, match="2 requests") as error:
        worker.submit(ask([1, 2]), Listener())
    assert 1 <= error.value.retry_after <= 600
    assert worker.figures().rejected == 1
    places = [view.queue_place for view in worker.slots()]
    assert places == [None, None, 0, 1]


def test_lower_priority_numbers_go_first(worker: Worker, gate: Gate) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[Event], None]:
        seen = Listener()

        def on_event(event: Event) -> None:
            if isinstance(event, Prefill) and name not in order:
                order.append(name)
            seen(event)

        on_event.seen = seen  # type: ignore[attr-defined]
        return on_event

    first = [note("a"), note("b")]
    for on_event in first:
        worker.submit(ask([1, 2], 2), on_event)
    running(worker, 2)
    later = [note("late"), note("urgent")]
    worker.submit(ask([1, 2], 2), later[0])
    worker.submit(ask([1, 2], 2, priority=-1), later[1])
    gate.open()
    for on_event in (*first, *later):
        on_event.seen.wait()  # type: ignore[attr-defined]
    assert order == ["a", "b", "urgent", "late"]


def test_who_waits_is_told_its_place(worker: Worker, gate: Gate) -> None:
    told = [Listener() for _ in range(4)]
    for listener in told:
        worker.submit(ask([1, 2], 2), listener)
    gate.open()
    for listener in told:
        listener.wait()
    places = [e.place for e in told[3].events if isinstance(e, Queued)]
    assert places
    assert places == sorted(places, reverse=True)


def test_a_waiting_request_is_cancelled_at_once(worker: Worker, gate: Gate) -> None:
    busy, told = [Listener(), Listener()], Listener()
    for listener in busy:
        worker.submit(ask([1, 2], 20), listener)
    running(worker, 2)
    worker.submit(ask([3, 4]), told).cancel()
    gate.let(1)  # a layer of the prompts
    assert told.wait().finished.reason == "cancelled"
    assert not busy[0].over.is_set()


def test_a_prompt_is_cancelled_between_its_layers(worker: Worker, gate: Gate) -> None:
    told = Listener()
    ticket = worker.submit(ask(some_ids(200)), told)
    running(worker, 1)
    ticket.cancel()
    gate.let(1)
    assert told.wait().finished.reason == "cancelled"
    assert told.ids == []


def test_the_same_key_shares_one_run(worker: Worker, gate: Gate) -> None:
    first, second = Listener(), Listener()
    request = ask([5, 6, 7], 12)
    worker.submit(request, first, key="k")
    gate.let(9)
    until(lambda: len(first.ids) >= 2)
    worker.submit(request, second, key="k")
    gate.open()
    assert first.wait().ids == second.wait().ids == answer_to([5, 6, 7], 12)
    figures = worker.figures()
    assert (figures.requests, figures.joined, figures.completion_tokens) == (1, 1, 12)


def test_a_shared_run_ends_when_the_last_has_left(worker: Worker, gate: Gate) -> None:
    listeners = [Listener(), Listener()]
    tickets = [worker.submit(ask([5, 6], 50), listener, key=1) for listener in listeners]
    gate.let(6)
    tickets[0].cancel()
    gate.let(3)
    assert listeners[0].wait().finished.reason == "cancelled"
    assert not listeners[1].over.is_set()
    tickets[1].cancel()
    gate.let(3)
    assert listeners[1].wait().finished.reason == "cancelled"
    assert worker.figures().cancelled == 1


def test_a_key_is_free_again_afterwards(worker: Worker, gate: Gate) -> None:
    gate.open()
    for _ in range(2):
        told = Listener()
        worker.submit(ask([5, 6], 3), told, key="k")
        told.wait()
    assert worker.figures().requests == 2


def test_closing_cancels_all_and_refuses_more(gate: Gate) -> None:
    worker = Worker(ScriptedServedModel(ScriptedBatchEngine(gate)), queue=5)
    told = [Listener() for _ in range(4)]
    for listener in told:
        worker.submit(ask([1, 2]), listener)
    worker.start()
    running(worker, 2)
    gate.open()
    worker.close()
    assert all(listener.wait().events for listener in told)
    with pytest.raises(RequestError, match="stopped") as refused:
        worker.submit(ask([1]), Listener())
    assert refused.value.status == 503


def test_an_error_in_one_sequence_is_told_to_it_alone() -> None:
    class Bad(ScriptedBatchEngine):
        def logits_of(self, h, times, out):  # type: ignore[no-untyped-def]
            logits = super().logits_of(h, times, out)
            logits[h[:, 0] == 99] = float("nan")
            return logits

    with Worker(ScriptedServedModel(Bad()), queue=5) as worker:
        bad, good = Listener(), Listener()
        worker.submit(ask([1, 99]), bad)
        worker.submit(ask([1, 2], 4), good)
        assert isinstance(bad.wait().failed.error, NumericError)
        assert good.wait().ids == answer_to([1, 2], 4)
        assert worker.figures().failed == 1


prompts = st.lists(st.integers(0, 299), min_size=1, max_size=150)
asked = st.tuples(
    st.just("ask"), prompts, st.integers(1, 6), st.integers(-1, 1), st.sampled_from([None, "a"])
)
steps = st.tuples(st.just("let"), st.integers(1, 8))
cancels = st.tuples(st.just("cancel"), st.integers(0, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(asked, steps, cancels), max_size=25), st.integers(1, 3))
def test_any_order_of_requests_and_cancels(actions: list[tuple[Any, ...]], parallel: int) -> None:
    """Each gets its own answer, or the beginning of it, and exactly one end."""
    gate = Gate()
    with Worker(ScriptedServedModel(ScriptedBatchEngine(gate), parallel), queue=3) as worker:
        try:
            runs = act(worker, gate, actions)
        finally:
            gate.open()
        for prompt, tokens, told, _ in runs:
            wanted = answer_to(prompt, tokens)
            assert told.wait().ids == wanted[: len(told.ids)]
            assert told.finished.reason == "cancelled" or told.ids == wanted
            assert told.finished.reason == "length" or any(t.cancelled for *_, t in runs)
            order = [Queued, Prefill, Generated, Finished]
            places = [order.index(type(event)) for event in told.events]
            assert places == sorted(places)
        assert worker.figures().queue_depth == 0


Asked = tuple[list[int], int, Listener, Ticket]


def act(worker: Worker, gate: Gate, actions: list[tuple[Any, ...]]) -> list[Asked]:
    """Requests that found room, as they were asked."""
    runs: list[Asked] = []
    for kind, *rest in actions:
        if kind == "let":
            gate.let(rest[0])
        elif kind == "cancel" and runs:
            runs[rest[0] % len(runs)][3].cancel()
        elif kind == "ask":
            prompt, tokens, priority, key = rest
            shared = None if key is None else (key, tuple(prompt), tokens)
            told, request = Listener(), ask(prompt, tokens, priority=priority)
            with suppress(QueueFullError):
                runs.append((prompt, tokens, told, worker.submit(request, told, shared)))
    return runs
