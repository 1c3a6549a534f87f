"""moe_ffn() with biases, the clamped SwiGLU of gpt-oss and the GeGLU of Gemma, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops import reference_linear as reference
from flashmoe.ops.base import Activation
from flashmoe.quant import Format
from flashmoe.quant.layout import Bytes, Floats
from flashmoe.store.format import ExpertLayout
from tests.support.matrices import at_offset, format_id, unwritten
from tests.support.tolerances import CLAMPED, DOT, GELU_TAIL, HIDDEN_CODE_FLIPS

FORMATS = [Format("bf16"), Format("q8", 32), Format("q4", 64), Format("mxfp4", 32)]
formats = pytest.mark.parametrize("fmt", FORMATS, ids=format_id)
HIDDEN, INNER, COUNT = 192, 128, 3


class Experts:
    """COUNT random records, large enough for the clamps to matter, and what they decode to."""

    def __init__(self, fmt: Format, activation: Activation, bias: bool, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.layout = ExpertLayout(COUNT, HIDDEN, INNER, fmt, fmt, activation, bias)
        size = self.layout.record_bytes
        self.records = at_offset(np.full(COUNT * size, 255, np.uint8), 64).reshape(COUNT, size)
        self.weights = [self._fill(record, rng) for record in self.records]

    def _fill(self, record: Bytes, rng: np.random.Generator) -> tuple[Floats, ...]:
        """gate_up, down and the two biases, as they are stored."""
        layout, kept = self.layout, []
        for fmt, rows, cols, at in (
            (layout.gate_up, 2 * INNER, HIDDEN, 0),
            (layout.down, HIDDEN, INNER, layout.down_offset),
        ):
            w = (rng.standard_normal((rows, cols)) * 4 / np.sqrt(cols)).astype(np.float32)
            data = fmt.encode(w)
            record[at : at + data.size] = data
            kept.append(fmt.decode(data, rows, cols))
        for size in (2 * INNER, HIDDEN):
            kept.append((3 * rng.standard_normal(size)).astype(np.float32) * layout.bias)
        if layout.bias:
            biases = np.concatenate(kept[2:]).view(np.uint8)
            record[layout.bias_offset : layout.bias_offset + biases.size] = biases
        return tuple(kept)

    def native(self) -> _native.ExpertLayout:
        a, b, s = self.layout.gate_up, self.layout.down, self.layout
        formats = (a.name, a.group, b.name, b.group)
        return _native.ExpertLayout(
            *formats, HIDDEN, INNER, s.down_offset, s.activation, s.bias_offset
        )

    def addresses(self) -> NDArray[np.uint64]:
        first, stride = self.records.ctypes.data, self.records.shape[1]
        return np.arange(COUNT, dtype=np.uint64) * np.uint64(stride) + np.uint64(first)

    def run(self, x: Floats, counts: list[int], threads: int = 2) -> Floats:
        """Expert e on the next counts[e] rows of x."""
        pool, acts, out = _native.Pool(threads), _native.Activations(), unwritten(len(x), HIDDEN)
        acts.assign(pool, x, self.layout.gate_up.group)
        offsets = np.cumsum([0, *counts], dtype=np.int32)
        rows = np.arange(len(x), dtype=np.int32)
        _native.moe_ffn(pool, acts, self.native(), self.addresses(), offsets, rows, rows, out)
        return out


def inputs(tokens: int) -> Floats:
    return np.random.default_rng(4).standard_normal((tokens, HIDDEN)).astype(np.float32)


def assert_expert(y: Floats, x: Floats, experts: Experts, e: int) -> None:
    gate_up, down, *biases = experts.weights[e]
    shape = experts.layout
    hidden = reference.hidden(x, gate_up, shape.gate_up, shape.activation, biases[0])
    expected = reference.ffn(
        x, gate_up, down, shape.gate_up, shape.down, shape.activation, (biases[0], biases[1])
    )
    # The clamped activation changes by at most 8 (up + 1) times a change of the gate, and by at
    # most 7 times a change of up.
    size = (np.abs(x) @ np.abs(gate_up).T + np.abs(biases[0])).max()
    error = 16 * DOT * size + CLAMPED * np.abs(hidden)
    if shape.activation != "swiglu_clamped":
        error = error * np.abs(hidden).max()
    allowed = error @ np.abs(down).T + DOT * (np.abs(hidden) @ np.abs(down).T + np.abs(biases[1]))
    if shape.down.group:
        allowed += HIDDEN_CODE_FLIPS * np.abs(hidden).max() / 127 * np.abs(down).max()
    assert np.all(np.abs(y - expected) <= allowed)


@formats
@pytest.mark.parametrize("activation", ["swiglu", "swiglu_clamped", "swiglu_limited", "geglu_tanh"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("counts", [[1, 1, 1], [70, 0, 5]], ids=str)
def test_matches_the_reference(
    isa: str, fmt: Format, activation: Activation, bias: bool, counts: list[int]
) -> None:
    experts, x = Experts(fmt, activation, bias), inputs(sum(counts))
    y, begin = experts.run(x, counts), 0
    for e, count in enumerate(counts):
        if count:
            assert_expert(y[begin : begin + count], x[begin : begin + count], experts, e)
        begin += count


@formats
def test_a_row_does_not_depend_on_others_or_on_threads(isa: str, fmt: Format) -> None:
    experts, x = Experts(fmt, "swiglu_clamped", True), inputs(70)
    together = experts.run(x, [70, 0, 0], threads=1)
    np.testing.assert_array_equal(experts.run(x, [70, 0, 0], threads=5), together)
    for row in (0, 1, 3, 69):
        np.testing.assert_array_equal(experts.run(x[row : row + 1], [1, 0, 0]), together[[row]])


def test_gelu_far_from_zero(isa: str) -> None:
    gates = np.array([-200.0, -10.1, -3.0, -1e-3, 0.0, 0.5, 9.9, 10.1, 200.0])
    for up in (-11.0, -0.5, 3.0, 200.0):
        expected = reference.geglu_tanh(gates, np.full(len(gates), up))
        got = np.array([one_value(float(gate), up, "geglu_tanh") for gate in gates])
        np.testing.assert_allclose(got, expected, rtol=CLAMPED, atol=GELU_TAIL * abs(up))


def test_the_limits_of_a_plain_swiglu(isa: str) -> None:
    values = [-200.0, -10.1, -3.0, 0.5, 9.9, 10.0, 10.1, 200.0]
    for gate in values:
        for up in values:
            g, u = min(gate, 10.0), min(max(up, -10.0), 10.0)
            expected = g / (1 + np.exp(min(-g, 700.0))) * u
            got = one_value(gate, up, "swiglu_limited")
            assert abs(got - expected) <= CLAMPED * abs(expected) + 1e-30, (gate, up)


def test_the_clamps_are_where_they_should_be(isa: str) -> None:
    """One hidden value whose gate and up are biases, read out by one weight of 1."""
    gates = [-200.0, -8.0, 0.5, 6.9, 7.0, 7.1, 200.0]
    for gate in gates:
        for up in gates:
            g, u = min(gate, 7.0), min(max(up, -7.0), 7.0)
            expected = g / (1 + np.exp(min(-1.702 * g, 700.0))) * (u + 1)
            got = one_value(gate, up)
            assert abs(got - expected) <= CLAMPED * abs(expected) + 1e-30, (gate, up)


def one_value(gate: float, up: float, activation: Activation = "swiglu_clamped") -> float:
    experts = Experts(Format("bf16"), activation, True)
    layout, record = experts.layout, experts.records[0]
    record[: layout.bias_offset] = 0
    down = np.zeros((HIDDEN, INNER), np.float32)
    down[5, 3] = 1
    encoded = layout.down.encode(down)
    record[layout.down_offset : layout.down_offset + encoded.size] = encoded
    biases = record[layout.bias_offset :][: layout.bias_bytes].view("<f4")
    biases[:] = 0
    biases[3], biases[8 + 3] = gate, up
    return float(experts.run(inputs(1), [1, 0, 0])[0, 5])


def test_wrong_layouts_are_refused() -> None:
    formats = ("bf16", 0, "bf16", 0, 64, 8)
    with pytest.raises(ValueError, match=r"\[ExpertLayout\] unknown activation 'relu'"):
        _native.ExpertLayout(*formats, 2048, "relu")
    for offset in (64, 3072 + 32):
        with pytest.raises(
            ValueError, match="bias_offset: expected 0 or a multiple of 64, at least"
        ):
            _native.ExpertLayout(*formats, 2048, "swiglu", offset)
    layout = _native.ExpertLayout(*formats, 2048, "swiglu", 3072)
    assert layout.record_bytes_used == 3072 + 4 * (16 + 64)
