"""The probes do the work that they claim."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flashmoe import _native
from tests.support.matrices import at_offset


@pytest.mark.parametrize("nbytes", [0, 100, 128, 4096, (3 << 20) + 200])
def test_read_sum_reads_every_whole_line_once(isa: str, nbytes: int) -> None:
    data = np.random.default_rng(41).integers(0, 256, nbytes, dtype=np.uint8)
    words = data[: nbytes // 128 * 128].view(np.uint64)
    for threads in (1, 3):
        total = _native.read_sum(_native.Pool(threads), at_offset(data, 8))
        assert total == int(words.sum(dtype=np.uint64))


def test_read_sum_refuses_odd_addresses() -> None:
    with pytest.raises(ValueError, match=r"\[read_sum\] data: expected an address"):
        _native.read_sum(_native.Pool(1), at_offset(np.zeros(128, np.uint8), 4))


@pytest.mark.parametrize("work", [_native.int8_work, _native.float_work], ids=["int8", "float"])
def test_work_grows_with_rounds_and_threads(
    isa: str, work: Callable[[_native.Pool, int], int]
) -> None:
    once = work(_native.Pool(1), 1000)
    assert once >= 2000
    assert work(_native.Pool(1), 3000) == 3 * once
    assert work(_native.Pool(2), 1000) == 2 * once
