"""Speed of the matrix kernels beside what the machine can do at best.

Weights are read from DRAM, as in decode: a measurement goes through 1.25 GiB of them before it meets
the same bytes again. Every figure is the best of many runs of a few milliseconds: other work on the
machine can only make one slower. Run: python -m flashmoe.bench.kernels [--threads 1 2]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from functools import partial

import numpy as np

from flashmoe import _native
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes, Floats

GIB = 1 << 30
POOL_BYTES = GIB + GIB // 4
RUN_BYTES = 64 << 20
REPEATS = 60
FORMATS = (Format("q4", 64), Format("q8", 64), Format("bf16"))


@dataclass(frozen=True)
class Figure:
    """One measured rate, and its share of the machine's limit of the same kind."""

    what: str
    threads: int
    rate: float
    unit: str
    share: float | None = None

    def __str__(self) -> str:
        share = "" if self.share is None else f"{self.share:7.0%}"
        return f"{self.what:<40}{self.threads:>3} threads {self.rate:9.1f} {self.unit:<6}{share}"


def best_seconds(work: Callable[[], object]) -> float:
    """Shortest of REPEATS runs, after one that is not counted."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bandwidth(pool: _native.Pool) -> float:
    """Bytes per second of a plain read of memory far larger than the caches."""
    memory = copies(np.ones(RUN_BYTES, dtype=np.uint8), RUN_BYTES)
    calls = [partial(_native.read_sum, pool, part) for part in memory]
    return RUN_BYTES / best_seconds(cycle_calls(calls, per_run=1))


def int8_peak(pool: _native.Pool) -> float:
    """int8 multiply-adds per second without memory traffic, two operations each."""
    rounds = 1_000_000
    operations: int = _native.int8_work(pool, rounds)
    return operations / best_seconds(partial(_native.int8_work, pool, rounds))


def random_weights(rows: int, cols: int) -> Floats:
    return np.random.default_rng(rows).standard_normal((rows, cols)).astype(np.float32)


def copies(data: Bytes, stride: int) -> Bytes:
    """data again and again, `stride` bytes apart, in POOL_BYTES of memory: uint8 [n, stride]."""
    pool = np.empty((POOL_BYTES // stride, stride), dtype=np.uint8)
    pool[:, : data.size] = data
    return pool


def cycle_calls(calls: Sequence[Callable[[], object]], per_run: int) -> Callable[[], None]:
    """A run makes the next per_run of the calls, round and round."""
    order: Iterator[Callable[[], object]] = itertools.cycle(calls)

    def run() -> None:
        for call in itertools.islice(order, per_run):
            call()

    return run


def gemv(pool: _native.Pool, fmt: Format, rows: int, cols: int) -> float:
    """Weight bytes per second of a matrix-vector product, weights in DRAM."""
    x, out, acts = random_weights(1, cols), np.empty((1, rows), np.float32), _native.Activations()
    acts.assign(pool, x, fmt.group)
    nbytes = fmt.nbytes(rows, cols)
    memory = copies(fmt.encode(random_weights(rows, cols)), nbytes)
    matrices = [_native.Matrix(fmt.name, fmt.group, rows, cols, data) for data in memory]
    calls = [partial(_native.linear, pool, acts, [m], [out]) for m in matrices]
    per_run = -(-RUN_BYTES // nbytes)
    return per_run * nbytes / best_seconds(cycle_calls(calls, per_run))


def moe(pool: _native.Pool, fmt: Format, hidden: int, intermediate: int, experts: int) -> float:
    """Weight bytes per second of one token through `experts` experts, records in DRAM."""
    up_bytes, down_bytes = fmt.nbytes(2 * intermediate, hidden), fmt.nbytes(hidden, intermediate)
    layout = _native.ExpertLayout(
        fmt.name, fmt.group, fmt.name, fmt.group, hidden, intermediate, -(-up_bytes // 64) * 64
    )
    record = np.zeros(-(-layout.record_bytes_used // 4096) * 4096, dtype=np.uint8)
    record[:up_bytes] = fmt.encode(random_weights(2 * intermediate, hidden))
    down = fmt.encode(random_weights(hidden, intermediate))
    record[layout.down_offset :][: down.size] = down
    memory = copies(record, record.size)
    addresses = memory.ctypes.data + np.arange(len(memory), dtype=np.uint64) * np.uint64(
        record.size
    )
    shuffled = np.random.default_rng(0).permutation(addresses)
    acts, out = _native.Activations(), np.empty((experts, hidden), np.float32)
    acts.assign(pool, random_weights(1, hidden), fmt.group)
    offsets = np.arange(experts + 1, dtype=np.int32)
    tokens, dests = np.zeros(experts, np.int32), np.arange(experts, dtype=np.int32)
    sets = shuffled[: len(shuffled) // experts * experts].reshape(-1, experts)
    calls = [
        partial(_native.moe_ffn, pool, acts, layout, chosen, offsets, tokens, dests, out)
        for chosen in sets
    ]
    nbytes = experts * (up_bytes + down_bytes)
    per_run = -(-RUN_BYTES // nbytes)
    return per_run * nbytes / best_seconds(cycle_calls(calls, per_run))


def gemm(pool: _native.Pool, fmt: Format, tokens: int, rows: int, cols: int) -> float:
    """Operations per second of a matrix-matrix product, quantisation of its input included."""
    x, out = random_weights(tokens, cols), np.empty((tokens, rows), np.float32)
    data = fmt.encode(random_weights(rows, cols))
    matrix, acts = _native.Matrix(fmt.name, fmt.group, rows, cols, data), _native.Activations()

    def work() -> None:
        acts.assign(pool, x, fmt.group)
        _native.linear(pool, acts, [matrix], [out])

    return 2 * tokens * rows * cols / best_seconds(work)


def figures(threads: int) -> Iterator[Figure]:
    """All measurements on that many threads."""
    pool = _native.Pool(threads)
    read, peak = read_bandwidth(pool), int8_peak(pool)
    yield Figure("memory read", threads, read / 1e9, "GB/s")
    yield Figure(f"int8 multiply-add ({_native.isa()})", threads, peak / 1e9, "GOP/s")
    for fmt in FORMATS:
        for rows, cols in ((2048, 2048), (4096, 4096)):
            rate = gemv(pool, fmt, rows, cols)
            yield Figure(
                f"{fmt.name} {rows}x{cols} x 1 token", threads, rate / 1e9, "GB/s", rate / read
            )
    for fmt in FORMATS:
        rate = moe(pool, fmt, hidden=2048, intermediate=768, experts=8)
        yield Figure(
            f"{fmt.name} 8 experts 2048x768, 1 token", threads, rate / 1e9, "GB/s", rate / read
        )
    for fmt in FORMATS:
        rate = gemm(pool, fmt, tokens=512, rows=2048, cols=2048)
        yield Figure(
            f"{fmt.name} 2048x2048 x 512 tokens", threads, rate / 1e9, "GOP/s", rate / peak
        )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    for threads in parser.parse_args().threads:
        for figure in figures(threads):
            print(figure, flush=True)


if __name__ == "__main__":
    main()
