"""The kernel benchmark measures what it says, shown on little memory."""

from __future__ import annotations

import pytest

from flashmoe import _native
from flashmoe.bench import kernels
from flashmoe.quant import Format


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(kernels, "TURN_BYTES", 1 << 18)
    monkeypatch.setattr(kernels, "TURNS", 2)


def test_turns_go_on_where_the_last_one_stopped() -> None:
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(5)]
    work = kernels.in_turn(calls, call_bytes=100_000)
    work.run()
    work.run()
    assert work.amount == 300_000
    assert seen == [0, 1, 2, 3, 4, 0]


def test_works_take_turns_and_the_first_does_not_count() -> None:
    order: list[str] = []
    works = [kernels.Work(lambda name=name: order.append(name), 1) for name in "ab"]
    rates = kernels.best_rates(*works)
    assert order == ["a", "b"] * 3
    assert all(rate > 0 for rate in rates)


@pytest.mark.parametrize("fmt", kernels.FORMATS, ids=lambda f: f.name)
def test_every_work_runs_and_counts_its_weights(fmt: Format) -> None:
    pool = _native.Pool(1)
    works = [
        kernels.plain_read(pool),
        kernels.gemv(pool, fmt, 64, 128),
        kernels.experts(pool, fmt, hidden=128, inner=64, count=2),
        kernels.gemm(pool, fmt, tokens=5, rows=64, cols=128),
    ]
    for work in works:
        work.run()
    assert works[1].amount % fmt.nbytes(64, 128) == 0
    assert works[2].amount % (fmt.nbytes(128, 128) + fmt.nbytes(128, 64)) == 0
    assert works[3].amount == 2 * 5 * 64 * 128


def test_attention_counts_the_keys_that_each_query_sees() -> None:
    work = kernels.attention(_native.Pool(1), tokens=3, start=5, heads=(4, 2), dim=8)
    work.run()
    assert work.amount == 4 * 8 * 4 * (6 + 7 + 8)


def test_a_figure_shows_rate_limit_and_share() -> None:
    line = str(kernels.Figure("q4", "B", rate=12e9, limit=24e9))
    assert line.split() == ["q4", "12.0", "of", "24.0", "GB/s", "50%"]
