"""Attention, routing, convolution, delta rule and gates against their NumPy twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe.layers.rope import RotaryTable
from flashmoe.ops import reference_layers as ref
from flashmoe.quant import Format
from tests.ops.cuda.test_products import error, host
from tests.support.tolerances import (
    CUDA_ATTENTION_F16,
    CUDA_ATTENTION_F32,
    CUDA_BF16,
    CUDA_ROW,
    DELTA,
)

pytestmark = pytest.mark.cuda

_RNG = np.random.default_rng(1)


def floats(*shape: int) -> NDArray[np.float32]:
    return _RNG.standard_normal(shape).astype(np.float32)


# tokens, start, query heads, key heads, head_dim, rotated dims, cache type
CASES = [
    (1, 0, 8, 2, 64, 64, "f4"),
    (1, 300, 6, 2, 96, 24, "f2"),
    (3, 40, 4, 4, 32, 32, "f4"),
    (20, 5, 8, 2, 64, 16, "f4"),
    (130, 7, 4, 2, 32, 8, "f2"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_over_what_was_stored(ops: Any, case: tuple[Any, ...]) -> None:
    tokens, start, heads, key_heads, dim, rotated, kind = case
    q, k, v = (
        floats(tokens, heads, 2 * dim),
        floats(tokens, key_heads, dim),
        floats(tokens, key_heads, dim),
    )
    weight, cos, sin = floats(dim), floats(tokens, rotated // 2), floats(tokens, rotated // 2)
    keys, values = (floats(key_heads, 512, dim).astype(kind) for _ in range(2))
    device_keys, device_values = (ops.vector(cache.copy()) for cache in (keys, values))
    turn = (ops.vector(weight), 1e-6, ops.vector(cos), ops.vector(sin))
    ops.kv_store(
        ops.head_norm_rope(ops.vector(k), *turn), ops.vector(v), device_keys, device_values, start
    )
    rows = slice(start, start + tokens)
    keys[:, rows] = ref.head_norm_rope(k, weight, 1e-6, cos, sin).transpose(1, 0, 2)
    values[:, rows] = v.transpose(1, 0, 2)
    loose = CUDA_ATTENTION_F16 if kind == "f2" else CUDA_ROW
    seen = CUDA_ATTENTION_F16 if kind == "f2" else CUDA_ATTENTION_F32
    query = ops.vector(q)[..., :dim]
    got = ops.attention(
        ops.head_norm_rope(query, *turn), device_keys, device_values, start, dim**-0.5
    )
    turned = ref.head_norm_rope(q[..., :dim], weight, 1e-6, cos, sin).astype(np.float32)
    expected = ref.attention(turned, keys, values, start, dim**-0.5)
    assert error(got, expected) <= seen
    # A single token is stored by the attention itself.
    assert error(device_keys.float(), keys.astype(np.float32)) <= loose
    assert error(device_values.float(), values.astype(np.float32)) <= loose
    ops.sigmoid_gate(got, ops.vector(q)[..., dim:])
    assert error(got, ref.sigmoid_gate(expected.astype(np.float32), q[..., dim:])) <= seen


@pytest.mark.parametrize(("experts", "k"), [(128, 8), (60, 4), (5, 5)])
@pytest.mark.parametrize("tokens", [1, 7, 20])
@pytest.mark.parametrize("renormalize", [True, False])
def test_routing(ops: Any, experts: int, k: int, tokens: int, renormalize: bool) -> None:
    fmt = Format("bf16")
    data = fmt.encode(floats(experts, 64))
    gate, w = ops.matrix(fmt, experts, 64, data), fmt.decode(data, experts, 64)
    x = floats(tokens, 64)
    ids, weights = ops.route(ops.vector(x), gate, k, renormalize)
    logits = (x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32)
    expected_ids, expected = ref.softmax_topk(logits, k, renormalize, 1.0)
    np.testing.assert_array_equal(host(ids), expected_ids)
    assert error(weights, expected) <= 3 * CUDA_BF16


# Rows that a program reads in one go, and longer ones.
@pytest.mark.parametrize("cols", [64, 4096])
def test_the_router_keeps_the_norm(ops: Any, cols: int) -> None:
    fmt = Format("bf16")
    gate = ops.matrix(fmt, 16, cols, fmt.encode(floats(16, cols)))
    x, weight = floats(2, cols), floats(cols)
    normed = ops.rms_norm(ops.vector(x), ops.vector(weight), 1e-6)
    ops.route(normed, gate, 4, True)
    assert error(normed.value, ref.rms_norm(x, weight, 1e-6)) <= CUDA_ROW


def test_rotations(ops: Any) -> None:
    from flashmoe.ops.cuda.rotary import DeviceRotary

    table = RotaryTable(32, 1e6)
    there = DeviceRotary(table.inv_freq, 0.5, ops)
    positions = np.array([0, 3, 40_000], dtype=np.int32)
    for got, expected in zip(there.at(positions), table.at(positions), strict=True):
        assert error(got, 0.5 * expected) <= CUDA_ROW
    for got, expected in zip(there.at_one(3), table.at_one(3), strict=True):
        assert error(got, 0.5 * expected) <= CUDA_ROW


@pytest.mark.parametrize("tokens", [1, 2, 5, 70])
def test_convolution(ops: Any, tokens: int) -> None:
    u, weight, state = floats(tokens, 309), floats(300, 4), floats(3, 300)
    device_state = ops.vector(state)
    got = ops.causal_conv_silu(ops.vector(u)[:, :300], ops.vector(weight), device_state)
    expected, new_state = ref.causal_conv_silu(u[:, :300], weight, state)
    assert error(got, expected) <= CUDA_ROW
    np.testing.assert_array_equal(host(device_state), new_state)


@dataclass(frozen=True)
class Delta:
    """Inputs of the delta rule; state is not written to."""

    gates: tuple[NDArray[np.float32], ...]  # a, b, a_log, dt_bias
    qkv: NDArray[np.float32]
    state: NDArray[np.float32]
    key_heads: int

    @staticmethod
    def make(
        tokens: int, heads: tuple[int, int] = (2, 4), dims: tuple[int, int] = (24, 40)
    ) -> Delta:
        width = 2 * heads[0] * dims[0] + heads[1] * dims[1]
        gates = [floats(tokens, heads[1]), floats(tokens, heads[1]), floats(heads[1])]
        state = floats(heads[1], *dims)
        return Delta((*gates, floats(heads[1])), floats(tokens, width), state, heads[0])

    def run(self, ops: Any, position: int, cuts: Sequence[int] = ()) -> tuple[Any, Any]:
        """Output and state after passes that begin at 0 and at the cuts."""
        state, ends = ops.vector(self.state), [*cuts, len(self.qkv)]
        qkv, a, b, a_log, dt_bias = (ops.vector(v) for v in (self.qkv, *self.gates))
        outs = []
        for begin, end in zip([0, *cuts], ends, strict=True):
            rows = slice(begin, end)
            gates = a[rows], b[rows], a_log, dt_bias
            outs.append(ops.gated_delta(qkv[rows], *gates, state, position + begin))
        return ops.concat(outs), state

    def check(self, ops: Any, position: int) -> None:
        got, state = self.run(ops, position)
        expected = ref.gated_delta(self.qkv, *self.gates, self.state, self.key_heads)
        assert error(got, expected[0]) <= DELTA
        assert error(state, expected[1]) <= DELTA


# Token by token, a block with ends, two blocks.
@pytest.mark.parametrize(("tokens", "position"), [(1, 0), (2, 64), (70, 0), (131, 61)])
def test_delta_rule(ops: Any, tokens: int, position: int) -> None:
    Delta.make(tokens).check(ops, position)


@pytest.mark.parametrize("dims", [(5, 3), (64, 48), (128, 128)], ids=str)
def test_blocks_of_any_width(ops: Any, dims: tuple[int, int]) -> None:
    Delta.make(64, (1, 2), dims).check(ops, 0)


def test_extreme_decays(ops: Any) -> None:
    one = Delta.make(128)
    a, b = one.gates[:2]
    a[:20] += 60  # the state is wiped out at once: sums of log decays in the thousands,
    a[20:64] -= 3  # whose small differences then matter
    a[64:90] -= 60  # no decay at all
    b[::3] += 80
    b[1::3] -= 80
    one.check(ops, 0)


def test_keys_that_are_alike(ops: Any) -> None:
    one = Delta.make(64)
    one.qkv[:, 48:96] = one.qkv[0, 48:96] + 0.01 * one.qkv[:, 48:96]
    one.gates[0][:] -= 10  # hardly any decay
    one.check(ops, 0)


# The weaker the decay, the more of the state before a cut shows after it.
@pytest.mark.parametrize("less", [0, 3, 6])
def test_cuts_at_multiples_of_64_change_no_bit(ops: Any, less: int) -> None:
    one = Delta.make(200)
    one.gates[0][:] -= less
    for got, whole in zip(one.run(ops, 0, (64, 192)), one.run(ops, 0), strict=True):
        np.testing.assert_array_equal(host(got), host(whole))


def test_gated_norm(ops: Any) -> None:
    x, gate, weight = floats(12, 40), floats(12, 40), floats(40)
    device_x = ops.vector(x)
    ops.gated_rms_norm(device_x, ops.vector(gate), ops.vector(weight), 1e-6)
    assert error(device_x, ref.gated_rms_norm(x, gate, weight, 1e-6)) <= CUDA_ROW
