"""ffn() and moe_ffn(): against NumPy, and bit-identical however tokens and experts are grouped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops import reference_linear as reference
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes, Floats
from tests.support.matrices import at_offset, format_id, unwritten
from tests.support.tolerances import DOT, HIDDEN_CODE_FLIPS, SILU

MIXES = [
    (Format("q4", 64), Format("q4", 64)),
    (Format("q4", 32), Format("q8", 32)),
    (Format("q8", 128), Format("q4", 64)),
    (Format("q4", 128), Format("bf16")),
    (Format("bf16"), Format("q8", 64)),
    (Format("mxfp4", 32), Format("mxfp4", 32)),
    (Format("mxfp4", 32), Format("q4", 64)),
    (Format("bf16"), Format("bf16")),
]
mixes = pytest.mark.parametrize("mix", MIXES, ids=lambda m: "-".join(map(format_id, m)))

HIDDEN, INTERMEDIATE = 256, 192


@dataclass
class Experts:
    """Expert records in one buffer, and their decoded weights."""

    layout: _native.ExpertLayout
    records: Bytes
    gate_up: list[Floats]
    down: list[Floats]
    mix: tuple[Format, Format]

    @property
    def addresses(self) -> NDArray[np.uint64]:
        first, stride = self.records.ctypes.data, self.records.size // len(self.down)
        return np.arange(len(self.down), dtype=np.uint64) * np.uint64(stride) + np.uint64(first)


def make_experts(
    seed: int, mix: tuple[Format, Format], count: int = 5, intermediate: int = INTERMEDIATE
) -> Experts:
    rng = np.random.default_rng(seed)
    up_fmt, down_fmt = mix
    up_shape, down_shape = (2 * intermediate, HIDDEN), (HIDDEN, intermediate)
    offset = -(-up_fmt.nbytes(*up_shape) // 64) * 64
    stride = -(-(offset + down_fmt.nbytes(*down_shape)) // 4096) * 4096
    records = at_offset(np.full(count * stride, 255, dtype=np.uint8), 64)
    gate_up, down = [], []
    for record in records.reshape(count, stride):
        for fmt, shape, start, kept in (
            (up_fmt, up_shape, 0, gate_up),
            (down_fmt, down_shape, offset, down),
        ):
            w = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
            data = fmt.encode(w)
            record[start : start + data.size] = data
            kept.append(fmt.decode(data, *shape))
    formats = (up_fmt.name, up_fmt.group, down_fmt.name, down_fmt.group)
    layout = _native.ExpertLayout(*formats, HIDDEN, intermediate, offset)
    assert layout.record_bytes_used == offset + down_fmt.nbytes(*down_shape)
    return Experts(layout, records, gate_up, down, mix)


@dataclass
class Routing:
    """Which rows each expert sees, and where its results go."""

    offsets: NDArray[np.int32]
    tokens: NDArray[np.int32]
    dests: NDArray[np.int32]


def route(rng: np.random.Generator, counts: list[int], tokens: int, rows: int) -> Routing:
    picked = [rng.choice(tokens, n, replace=False) for n in counts]
    return Routing(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        np.concatenate(picked).astype(np.int32),
        rng.permutation(rows)[: sum(counts)].astype(np.int32),
    )


def run(experts: Experts, x: Floats, routing: Routing, rows: int, threads: int = 2) -> Floats:
    pool, acts, out = _native.Pool(threads), _native.Activations(), unwritten(rows, HIDDEN)
    acts.assign(pool, x, experts.mix[0].group)
    _native.moe_ffn(
        pool,
        acts,
        experts.layout,
        experts.addresses,
        routing.offsets,
        routing.tokens,
        routing.dests,
        out,
    )
    return out


def hidden_bound(x: Floats, gate_up: Floats, fmt: Format) -> Floats:
    """Allowed error of silu(gate) * up; |silu'| is at most 1.1."""
    size = (np.abs(x) @ np.abs(gate_up).T).reshape(len(x), -1, 2, 8)
    value = np.abs(reference.linear(x, gate_up, fmt.group)).reshape(size.shape)
    bound = DOT * (1.1 * size[:, :, 0] * value[:, :, 1] + value[:, :, 0] * size[:, :, 1])
    return bound.reshape(len(x), -1)


def assert_close(
    y: Floats, x: Floats, gate_up: Floats, down: Floats, mix: tuple[Format, Format]
) -> None:
    """y against the reference of one expert applied to x."""
    expected, hidden = reference.ffn(x, gate_up, down, *mix), reference.hidden(x, gate_up, mix[0])
    hidden_error = hidden_bound(x, gate_up, mix[0]) + (DOT + SILU) * np.abs(hidden)
    allowed = hidden_error @ np.abs(down).T
    if mix[1].group:
        allowed += HIDDEN_CODE_FLIPS * np.abs(hidden).max() / 127 * np.abs(down).max()
    assert np.all(np.abs(y - expected) <= allowed)


@mixes
@pytest.mark.parametrize("counts", [[1, 1, 0, 1, 1], [0, 70, 3, 5, 2], [0, 0, 0, 0, 0]], ids=str)
def test_moe_matches_the_reference(isa: str, mix: tuple[Format, Format], counts: list[int]) -> None:
    rng = np.random.default_rng(11)
    experts = make_experts(12, mix)
    x = rng.standard_normal((80, HIDDEN)).astype(np.float32)
    routing = route(rng, counts, tokens=80, rows=100)
    out = run(experts, x, routing, rows=100)
    for e in range(5):
        span = slice(routing.offsets[e], routing.offsets[e + 1])
        if span.stop > span.start:
            y = out[routing.dests[span]]
            assert_close(y, x[routing.tokens[span]], experts.gate_up[e], experts.down[e], mix)
    untouched = np.setdiff1d(np.arange(100), routing.dests)
    assert np.isnan(out[untouched]).all()


@mixes
def test_a_result_depends_on_its_token_and_expert_only(
    isa: str, mix: tuple[Format, Format]
) -> None:
    rng = np.random.default_rng(13)
    experts = make_experts(14, mix)
    x = rng.standard_normal((80, HIDDEN)).astype(np.float32)
    routing = route(rng, [66, 3, 0, 2, 9], tokens=80, rows=80)
    together = run(experts, x, routing, rows=80, threads=1)
    for threads in (2, 5):
        assert np.array_equal(run(experts, x, routing, 80, threads), together)
    expert = np.repeat(np.arange(5), np.diff(routing.offsets))
    for j in (0, 40, 65, 66, 70, 79):
        offsets = (np.arange(6) > expert[j]).astype(np.int32)
        alone = Routing(offsets, np.zeros(1, np.int32), np.zeros(1, np.int32))
        y = run(experts, x[[routing.tokens[j]]], alone, rows=1)
        assert np.array_equal(y[0], together[routing.dests[j]])


def run_ffn(
    experts: Experts, x: Floats, out: Floats, scale: Floats | None = None, threads: int = 2
) -> Floats:
    """ffn() with the weights of expert 0."""
    pool, acts = _native.Pool(threads), _native.Activations()
    used, offset = experts.layout.record_bytes_used, experts.layout.down_offset
    up_fmt, down_fmt = experts.mix
    shape = experts.gate_up[0].shape
    gate_up = _native.Matrix(
        up_fmt.name, up_fmt.group, *shape, experts.records[: up_fmt.nbytes(*shape)]
    )
    down = _native.Matrix(
        down_fmt.name, down_fmt.group, *experts.down[0].shape, experts.records[offset:used]
    )
    acts.assign(pool, x, up_fmt.group)
    _native.ffn(pool, acts, gate_up, down, out, scale)
    return out


@mixes
@pytest.mark.parametrize("tokens", [1, 2, 5, 130])
def test_ffn_adds_the_scaled_expert(isa: str, mix: tuple[Format, Format], tokens: int) -> None:
    rng = np.random.default_rng(15)
    experts = make_experts(16, mix, count=1)
    x = rng.standard_normal((tokens, HIDDEN)).astype(np.float32)
    every = np.arange(tokens, dtype=np.int32)
    y = run(experts, x, Routing(np.array([0, tokens], np.int32), every, every), rows=tokens)
    before = rng.standard_normal((tokens, HIDDEN)).astype(np.float32)
    scale = rng.standard_normal(tokens).astype(np.float32)
    assert np.array_equal(run_ffn(experts, x, before.copy()), before + y)
    assert np.array_equal(
        run_ffn(experts, x, before.copy(), scale, threads=5), before + scale[:, None] * y
    )


def test_intermediate_size_need_not_be_a_multiple_of_64_for_bf16(isa: str) -> None:
    mix = (Format("q8", 64), Format("bf16"))
    experts = make_experts(17, mix, count=1, intermediate=72)
    x = np.random.default_rng(18).standard_normal((3, HIDDEN)).astype(np.float32)
    y = run_ffn(experts, x, np.zeros((3, HIDDEN), dtype=np.float32))
    assert_close(y, x, experts.gate_up[0], experts.down[0], mix)


def test_silu_reaches_its_limits(isa: str) -> None:
    # Identity weights: the hidden value is silu(gate) * up of chosen numbers.
    gate = np.array([-200, -90, -60, -20, -1e-3, 0, 1e-3, 1, 3, 20, 60, 200], np.float32)
    w = np.zeros((16, len(gate) + 1 + 3), np.float32)
    w[:8, 0], w[8:, 1] = 1, 1
    fmt = Format("bf16")
    x = np.zeros((len(gate), w.shape[1]), np.float32)
    x[:, 0], x[:, 1] = gate, 1
    down = np.zeros((w.shape[1], 8), np.float32)
    down[0, 3] = 1
    pool, acts, out = _native.Pool(1), _native.Activations(), np.zeros_like(x)
    acts.assign(pool, x, 0)
    matrices = [_native.Matrix("bf16", 0, *m.shape, fmt.encode(m)) for m in (w, down)]
    _native.ffn(pool, acts, *matrices, out)
    expected = reference.silu_mul(gate.astype(np.float64), np.ones(len(gate)))
    assert np.all(np.abs(out[:, 0] - expected) <= SILU * np.abs(expected) + 1e-30)


class TestRefusals:
    """Each broken rule is a ValueError; nothing is written."""

    def refuse(self, message: str, **changes: object) -> None:
        experts = make_experts(19, MIXES[0], count=2)
        pool, acts, out = _native.Pool(1), _native.Activations(), unwritten(4, HIDDEN)
        acts.assign(pool, np.ones((3, HIDDEN), dtype=np.float32), 64)
        arguments: dict[str, object] = {
            "addresses": experts.addresses,
            "offsets": np.array([0, 2, 3], dtype=np.int32),
            "tokens": np.array([0, 1, 2], dtype=np.int32),
            "dests": np.array([0, 1, 2], dtype=np.int32),
            "out": out,
        }
        with pytest.raises(ValueError, match=rf"^\[moe_ffn\] {message}"):
            _native.moe_ffn(pool, acts, experts.layout, **(arguments | changes))
        assert np.isnan(out).all()

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("offsets", [0, 3], "offsets: expected 3, got 2"),
            ("offsets", [1, 2, 3], r"offsets\[0\]: expected 0, got 1"),
            ("offsets", [0, 2, 2], "last offset: expected 3, got 2"),
            ("offsets", [0, 4, 3], "offsets: expected rising"),
            ("tokens", [0, 1, 3], r"tokens\[2\]: expected 0 to 2, got 3"),
            ("tokens", [-1, 1, 2], r"tokens\[0\]: expected 0 to 2, got -1"),
            ("dests", [0, 1], "dests: expected 3, got 2"),
            ("dests", [0, 4, 1], r"dests\[1\]: expected 0 to 3, got 4"),
            ("dests", [0, 1, 0], "dests: row 0 appears twice"),
        ],
    )
    def test_indices(self, name: str, values: list[int], message: str) -> None:
        self.refuse(message, **{name: np.array(values, dtype=np.int32)})

    def test_addresses(self) -> None:
        message = r"addresses\[0\]: expected a record, got 0"
        self.refuse(message, addresses=np.zeros(2, dtype=np.uint64))

    def test_output_columns(self) -> None:
        self.refuse("out columns: expected 256, got 255", out=unwritten(4, 255))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("q4", 64, "q4", 64, 256, 100, 1 << 20), "cols: expected a positive multiple of 64"),
            (("bf16", 0, "bf16", 0, 256, 12, 1 << 20), "gate_up rows: expected a multiple of 16"),
            (
                ("bf16", 0, "bf16", 0, 64, 8, 1984),
                "down_offset: expected .* at least 2048, got 1984",
            ),
            (("bf16", 0, "bf16", 0, 64, 8, 2056), "down_offset: expected a multiple of 64"),
        ],
    )
    def test_layout(self, arguments: tuple[object, ...], message: str) -> None:
        with pytest.raises(ValueError, match=rf"\[ExpertLayout\] {message}"):
            _native.ExpertLayout(*arguments)

    def test_ffn(self) -> None:
        experts = make_experts(20, MIXES[0], count=1)
        x = np.ones((3, HIDDEN), dtype=np.float32)
        for rows, scale, message in [
            (4, None, "out rows: expected 3, got 4"),
            (3, np.ones(2, np.float32), "scale: expected 3, got 2"),
        ]:
            out = unwritten(rows, HIDDEN)
            with pytest.raises(ValueError, match=rf"\[ffn\] {message}"):
                run_ffn(experts, x, out, scale)
            assert np.isnan(out).all()
