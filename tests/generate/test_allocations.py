"""A decode step reuses its memory: nothing as large as an activation is taken from the heap."""

from __future__ import annotations

import tracemalloc

import numpy as np

import flashmoe
from flashmoe.api import Model
from flashmoe.demo import demo_model_path
from flashmoe.generate.engine import Session

STEPS = 20
# Tuples, floats and the objects that layers hand each other; 1548 bytes at most in three runs.
SMALL_BYTES = 12 << 10


def peak_of_a_step(session: Session) -> int:
    """The most bytes that Python and NumPy held at once during a step, beyond those before."""
    highest = 0
    for id in range(STEPS):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        session.step(id)
        highest = max(highest, tracemalloc.get_traced_memory()[1] - before)
    return highest


def fresh_session(model: Model) -> Session:
    session = model.session()
    session.feed([1, 2, 3])
    session.step(0)
    return session


def test_decode_takes_no_memory_for_activations_or_logits() -> None:
    with flashmoe.load(demo_model_path(), cache="all") as model:
        tracemalloc.start()
        try:
            peak_of_a_step(fresh_session(model))  # the experts are read, the buffers have grown
            session = fresh_session(model)
            assert peak_of_a_step(session) < SMALL_BYTES
        finally:
            tracemalloc.stop()


def test_the_measurement_sees_an_array() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        np.empty(SMALL_BYTES // 4, dtype=np.float32).fill(0)
        assert tracemalloc.get_traced_memory()[1] - before >= SMALL_BYTES
    finally:
        tracemalloc.stop()
