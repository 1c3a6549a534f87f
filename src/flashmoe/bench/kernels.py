"""Speed of the matrix kernels beside what the machine can do at best.

Weights are read from DRAM, as in decode: a measurement goes through 1.25 GiB of them before it
meets the same bytes again. Kernel and limit (plain reads, or arithmetic in registers) take turns
of a few milliseconds and the best turn of each counts, because other work on the machine can only
make one slower.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from flashmoe import _native
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes, Floats

MEMORY_BYTES = 5 << 28
TURN_BYTES = 64 << 20
TURNS = 60
SECONDS = 5.0  # slow kernels get fewer turns
FORMATS = (
    Format("q4", 64),
    Format("q3", 64),
    Format("q2", 64),
    Format("mxfp4", 32),
    Format("q8", 64),
    Format("bf16"),
)

Call = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """Something to time. amount: bytes or operations of one run; keeps: what must stay alive."""

    run: Call
    amount: int
    keeps: object = None


@dataclass(frozen=True)
class Figure:
    """A kernel's rate and, measured beside it, the machine's limit; per second."""

    what: str
    unit: str
    rate: float
    limit: float

    def __str__(self) -> str:
        rates = f"{self.rate / 1e9:7.1f} of {self.limit / 1e9:7.1f} G{self.unit}/s"
        return f"{self.what:<36}{rates:<32}{self.rate / self.limit:5.0%}"


def best_rates(*works: Work) -> list[float]:
    """Best amount per second of each; the works take turns. The first turn is not counted."""
    best, end = [0.0] * len(works), time.perf_counter() + SECONDS
    for turn in range(TURNS + 1):
        if turn > 1 and time.perf_counter() > end:
            break
        for i, work in enumerate(works):
            start = time.perf_counter()
            work.run()
            rate = work.amount / (time.perf_counter() - start)
            best[i] = max(best[i], rate if turn else 0.0)
    return best


def in_turn(calls: Sequence[Call], call_bytes: int) -> Work:
    """Each run makes the next calls, round and round, until they have read TURN_BYTES."""
    order: Iterator[Call] = itertools.cycle(calls)
    per_run = -(-TURN_BYTES // call_bytes)

    def run() -> None:
        for call in itertools.islice(order, per_run):
            call()

    return Work(run, per_run * call_bytes)


def copies(data: Bytes, stride: int) -> Bytes:
    """data again and again, `stride` bytes apart, in MEMORY_BYTES: uint8 [n, stride]."""
    memory = np.empty((MEMORY_BYTES // stride, stride), dtype=np.uint8)
    memory[:, : data.size] = data
    return memory


def random_weights(rows: int, cols: int) -> Floats:
    """Standard normal float32 [rows, cols], the same for the same shape."""
    return np.random.default_rng(rows).standard_normal((rows, cols)).astype(np.float32)


def plain_read(pool: _native.Pool) -> Work:
    """A sum over memory."""
    memory = copies(np.ones(TURN_BYTES, dtype=np.uint8), TURN_BYTES)
    return in_turn([partial(_native.read_sum, pool, part) for part in memory], TURN_BYTES)


def int8_arithmetic(pool: _native.Pool) -> Work:
    """int8 multiply, widen, add without memory traffic."""
    rounds = 1_000_000
    return Work(partial(_native.int8_work, pool, rounds), _native.int8_work(pool, rounds))


def float_arithmetic(pool: _native.Pool) -> Work:
    """float32 multiply-adds without memory traffic."""
    rounds = 1_000_000
    return Work(partial(_native.float_work, pool, rounds), _native.float_work(pool, rounds))


def attention(
    pool: _native.Pool, tokens: int, start: int, heads: tuple[int, int], dim: int
) -> Work:
    """A piece of a prompt after `start` tokens, (query, key/value) heads, float16 cache.

    amount: operations of both products, 4 * dim for each query, head and key that it sees.
    """
    queries, shared = heads
    q = random_weights(tokens, queries * dim).reshape(tokens, queries, dim)
    keys, values = (
        random_weights(shared * (start + tokens), dim).astype(np.float16).reshape(shared, -1, dim)
        for _ in range(2)
    )
    run = partial(_native.attention, pool, q, keys, values, start, dim**-0.5, np.empty_like(q))
    seen = tokens * start + tokens * (tokens + 1) // 2
    return Work(run, 4 * dim * queries * seen)


def gemv(pool: _native.Pool, fmt: Format, rows: int, cols: int) -> Work:
    """Matrix-vector products; amount: weight bytes."""
    out, acts = np.empty((1, rows), np.float32), _native.Activations()
    acts.assign(pool, random_weights(1, cols), fmt.group)
    data = fmt.encode(random_weights(rows, cols))
    memory = copies(data, data.size)
    matrices = [_native.Matrix(fmt.name, fmt.group, rows, cols, part) for part in memory]
    return in_turn([partial(_native.linear, pool, acts, [m], [out]) for m in matrices], data.size)


def expert_record(fmt: Format, hidden: int, inner: int) -> tuple[_native.ExpertLayout, Bytes]:
    """One expert with random weights, as it lies in a packed model."""
    gate_up = fmt.encode(random_weights(2 * inner, hidden))
    down = fmt.encode(random_weights(hidden, inner))
    offset = -(-gate_up.size // 64) * 64
    record = np.zeros(-(-(offset + down.size) // 4096) * 4096, dtype=np.uint8)
    record[: gate_up.size], record[offset : offset + down.size] = gate_up, down
    formats = (fmt.name, fmt.group, fmt.name, fmt.group)
    return _native.ExpertLayout(*formats, hidden, inner, offset), record


def experts(
    pool: _native.Pool, fmt: Format, hidden: int, inner: int, count: int, tokens: int = 1
) -> Work:
    """Tokens through `count` experts that lie anywhere in memory.

    amount: weight bytes for one token, operations for more, each expert's own `tokens`.
    """
    layout, record = expert_record(fmt, hidden, inner)
    memory = copies(record, record.size)
    starts = memory.ctypes.data + np.arange(len(memory), dtype=np.uint64) * np.uint64(record.size)
    shuffled = np.random.default_rng(0).permutation(starts)[: len(starts) // count * count]
    entries = count * tokens
    acts, out = _native.Activations(), np.empty((entries, hidden), np.float32)
    acts.assign(pool, random_weights(tokens, hidden), fmt.group)
    offsets = np.arange(0, entries + 1, tokens, dtype=np.int32)
    dests = np.arange(entries, dtype=np.int32)
    routing = (offsets, dests % tokens, dests)
    calls = [
        partial(_native.moe_ffn, pool, acts, layout, chosen, *routing, out)
        for chosen in shuffled.reshape(-1, count)
    ]
    work = in_turn(calls, count * layout.record_bytes_used)
    if tokens > 1:
        runs = work.amount // (count * layout.record_bytes_used)
        work = replace(work, amount=runs * 6 * entries * hidden * inner)
    return replace(work, keeps=memory)  # the calls know addresses only


def gemm(pool: _native.Pool, fmt: Format, tokens: int, rows: int, cols: int) -> Work:
    """A matrix-matrix product, quantisation of its input included; amount: operations."""
    x, out = random_weights(tokens, cols), np.empty((tokens, rows), np.float32)
    data = fmt.encode(random_weights(rows, cols))
    matrix, acts = _native.Matrix(fmt.name, fmt.group, rows, cols, data), _native.Activations()

    def run() -> None:
        acts.assign(pool, x, fmt.group)
        _native.linear(pool, acts, [matrix], [out])

    return Work(run, 2 * tokens * rows * cols)


def figures(threads: int) -> Iterator[Figure]:
    """All measurements on that many threads. bf16 multiplies no int8: it has no limit to show."""
    pool = _native.Pool(threads)
    read, arithmetic = plain_read(pool), int8_arithmetic(pool)
    for fmt in FORMATS:
        for size in (2048, 4096):
            rates = best_rates(gemv(pool, fmt, size, size), read)
            yield Figure(f"{fmt.name} {size} x {size}, 1 token", "B", *rates)
        rates = best_rates(experts(pool, fmt, hidden=2048, inner=768, count=8), read)
        yield Figure(f"{fmt.name} 8 experts 2048 x 768, 1 token", "B", *rates)
        if fmt.group:
            rates = best_rates(gemm(pool, fmt, tokens=512, rows=2048, cols=2048), arithmetic)
            yield Figure(f"{fmt.name} 2048 x 2048, 512 tokens", "op", *rates)
            work = experts(pool, fmt, hidden=2048, inner=768, count=8, tokens=32)
            rates = best_rates(work, arithmetic)
            yield Figure(f"{fmt.name} 8 experts 2048 x 768, 32 tokens", "op", *rates)
    work = attention(pool, tokens=256, start=3840, heads=(32, 4), dim=128)
    rates = best_rates(work, float_arithmetic(pool))
    yield Figure("attention, 256 tokens at 3840", "flop", *rates)
