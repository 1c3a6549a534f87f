from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.errors import UsageError
from flashmoe.layers.state import DeltaState

IDS = [5, 6, 7, 8, 9, 10, 11, 12]


def test_a_session_that_went_back_gives_the_bits_of_a_fresh_one(tiny: Path) -> None:
    with flashmoe.load(tiny) as model:
        session, fresh = model.session(), model.session()
        session.feed(IDS)
        kept = session.rewind(3)
        delta = any(isinstance(layer, DeltaState) for layer in session._state.layers)
        assert kept == (0 if delta else 3)
        got = session.feed([*IDS[:3], 20, 21][kept:])
        np.testing.assert_array_equal(got, fresh.feed([*IDS[:3], 20, 21]))


def test_staying_is_no_loss(tiny: Path) -> None:
    with flashmoe.load(tiny) as model:
        session = model.session()
        session.feed(IDS)
        assert session.rewind(len(IDS)) == len(IDS)
        with pytest.raises(UsageError, match="cannot go forward"):
            session.rewind(len(IDS) + 1)


def test_an_interrupted_session_goes_on(tiny: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with flashmoe.load(tiny) as model:
        session, fresh = model.session(), model.session()
        session.feed(IDS[:3])
        with pytest.raises(KeyboardInterrupt):
            session.feed(IDS[3:], stop)
        kept = session.rewind(session.position)
        np.testing.assert_array_equal(session.feed(IDS[kept:]), fresh.feed(IDS))
