from __future__ import annotations

import pytest

from flashmoe.bench.card import time_share
from tests.support.card import card


def test_time_is_shared_out_by_tier() -> None:
    before = {"card": 1.0, "copies": 2.0}
    after = {"card": 2.0, "copies": 4.0, "disk_wait": 4.0, "planning": 1.0, "python": 2.0}
    assert time_share(before, after) == {"card": 0.1, "bus": 0.2, "disk": 0.4, "host": 0.3}


def test_without_time_there_are_no_shares() -> None:
    assert set(time_share({"card": 1.0}, {"card": 1.0}).values()) == {0.0}


@pytest.mark.cuda
def test_waits_are_told_apart() -> None:
    card()
    from flashmoe.ops.cuda.clock import split_waits

    waits = split_waits({"card": 1.0, "copies": 5.0}, disk=3.0, host=1.0)
    assert waits == {"card": 1.0, "copies": 1.0, "disk_wait": 3.0, "host_experts": 1.0}
    # The host waits for the disk while the card still computes: that is nobody's wait.
    waits = split_waits({"copies": 2.0}, disk=3.0, host=1.0)
    assert waits == {"copies": 0.0, "disk_wait": 2.0, "host_experts": 0.0}
