"""Routed experts in an arena against the twin; which slot an expert is in must not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe.ops import reference_layers as ref
from flashmoe.ops import reference_linear
from flashmoe.ops.base import Activation
from flashmoe.quant import Format
from flashmoe.store.format import ExpertLayout
from tests.ops.cuda.test_products import error, host
from tests.support.tolerances import CUDA_FIXED_POINT, CUDA_HALF

pytestmark = pytest.mark.cuda

HIDDEN, INNER, EXPERTS, TOPK = 256, 96, 6, 3
EXACT = Format("bf16")  # inputs as they are, not rounded to int8


@dataclass
class Layer:
    """Records of one layer, and the weights that they mean."""

    layout: ExpertLayout
    records: NDArray[np.uint8]
    weights: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    biases: list[tuple[NDArray[np.float32], NDArray[np.float32]] | None]

    @staticmethod
    def make(gate_up: str, down: str, activation: Activation = "swiglu") -> Layer:
        """clamped experts have biases, too."""
        rng, biased = np.random.default_rng(2), activation == "swiglu_clamped"
        formats = [Format(name, 0 if name == "bf16" else 32) for name in (gate_up, down)]
        layout = ExpertLayout(EXPERTS, HIDDEN, INNER, *formats, activation, biased)
        records = np.zeros((EXPERTS, layout.record_bytes), np.uint8)
        weights, biases = [], []
        for record in records:
            first = layout.gate_up.encode(_small(rng, 2 * INNER, HIDDEN))
            second = layout.down.encode(_small(rng, HIDDEN, INNER))
            record[: len(first)] = first
            record[layout.down_offset :][: len(second)] = second
            decoded = layout.gate_up.decode(first, 2 * INNER, HIDDEN)
            weights.append((decoded, layout.down.decode(second, HIDDEN, INNER)))
            values = rng.standard_normal(2 * INNER + HIDDEN).astype(np.float32)
            biases.append((4 * values[: 2 * INNER], values[2 * INNER :]) if biased else None)
            if biased:
                both = np.concatenate(biases[-1]).view(np.uint8)
                record[layout.bias_offset :][: len(both)] = both
        return Layer(layout, records, weights, biases)

    def arena(self, ops: Any, slots: list[int]) -> tuple[Any, Any]:
        """The records in those slots, on the device, and the slot table."""
        import torch

        from flashmoe.ops.cuda.routed import ExpertArena, workspace_bytes

        placed = np.empty_like(self.records)
        placed[slots] = self.records
        words = ops.integers(placed.reshape(-1).view(np.int32))
        table = ops.integers(np.array(slots, dtype=np.int32))
        nbytes = workspace_bytes(self.layout, EXPERTS)
        workspace = torch.empty(nbytes, dtype=torch.uint8, device=ops.device)
        return ExpertArena(words, self.layout.record_bytes, self.layout, workspace), table


def _small(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


FORMATS: list[tuple[str, str, Activation]] = [
    ("q4", "q4", "swiglu"),
    ("q8", "q4", "swiglu"),
    ("bf16", "bf16", "swiglu"),
    ("mxfp4", "mxfp4", "swiglu_clamped"),
    ("bf16", "q8", "swiglu_clamped"),
    ("q2", "q3", "swiglu"),
    ("q3", "q4", "swiglu"),
]
ORDERS = [[2, 1, 0, 5, 4, 3], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("formats", FORMATS, ids="-".join)
@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_experts(ops: Any, formats: tuple[str, str, Activation], tokens: int) -> None:
    layer, rng = Layer.make(*formats), np.random.default_rng(3)
    x = rng.standard_normal((tokens, HIDDEN)).astype(np.float32)
    norm, out = rng.standard_normal(HIDDEN).astype(np.float32), rng.standard_normal(x.shape)
    ids = np.stack([rng.permutation(EXPERTS)[:TOPK] for _ in range(tokens)]).astype(np.int32)
    weights = rng.standard_normal((tokens, TOPK)).astype(np.float32)
    results = []
    for order in ORDERS:
        arena, table = layer.arena(ops, order)
        got = ops.vector(out.astype(np.float32))
        normed = ops.rms_norm(ops.vector(x), ops.vector(norm), 1e-6)
        ops.routed.add(normed, ops.integers(ids), ops.vector(weights), arena, table, got)
        results.append(got)
    np.testing.assert_array_equal(host(results[0]), host(results[1]))
    rows = ref.rms_norm(x, norm, 1e-6).astype(np.float32)
    expected = out.astype(np.float32).astype(np.float64)
    for t in range(tokens):
        for k in range(TOPK):
            gate_up, down = layer.weights[ids[t, k]]
            y = reference_linear.ffn(
                rows[t : t + 1], gate_up, down, EXACT, EXACT, formats[2], layer.biases[ids[t, k]]
            )[0]
            expected[t] += weights[t, k] * y
    assert error(results[0], expected) <= (CUDA_FIXED_POINT if tokens < 40 else CUDA_HALF)


@pytest.mark.parametrize("tokens", [1, 40])
def test_shared_expert(ops: Any, tokens: int) -> None:
    layer, rng = Layer.make("q4", "q4"), np.random.default_rng(4)
    shape, record, (gate_up, down) = layer.layout, layer.records[0], layer.weights[0]
    size = shape.down.nbytes(HIDDEN, INNER)
    stored = (
        ops.matrix(shape.gate_up, 2 * INNER, HIDDEN, record[: shape.gate_up_bytes].copy()),
        ops.matrix(shape.down, HIDDEN, INNER, record[shape.down_offset :][:size].copy()),
    )
    x, out = (rng.standard_normal((tokens, HIDDEN)).astype(np.float32) for _ in range(2))
    scale = rng.standard_normal(tokens).astype(np.float32)
    got = ops.vector(out)
    ops.ffn_add(ops.vector(x), *stored, got, ops.vector(scale))
    expected = out + scale[:, None] * reference_linear.ffn(x, gate_up, down, EXACT, EXACT)
    assert error(got, expected) <= (CUDA_FIXED_POINT if tokens == 1 else CUDA_HALF)


@dataclass
class Lru:
    """Slots by last use, the lower slot first where equal: what the kernel `place` is to do."""

    owner: list[int]
    used: list[int]

    def place(self, keys: list[int], now: int) -> list[int]:
        """The slot that each key is loaded into, -1 for those that are there."""
        for key in keys:
            if key in self.owner:
                self.used[self.owner.index(key)] = now
        loads = []
        for key in keys:
            slot = -1
            if key not in self.owner:
                slot = self.used.index(min(self.used))
                self.owner[slot], self.used[slot] = key, now
            loads.append(slot)
        return loads


def test_the_card_evicts_what_was_used_least_recently(ops: Any) -> None:
    from flashmoe.ops.cuda.kernels.placement import place

    layers, experts, slots, k = 2, 8, 9, 3
    rng, twin = np.random.default_rng(5), Lru([-1] * slots, [0] * slots)
    table = ops.integers(np.full(layers * experts, -1, dtype=np.int32))
    owner = ops.integers(np.full(slots, -1, dtype=np.int32))
    stamp, fresh, clock = (ops.integers(np.zeros(n, dtype=np.int32)) for n in (slots, slots, 1))
    counts, loads = ops.state((4,), "i8"), ops.integers(np.zeros(k, dtype=np.int32))
    misses = 0
    for step in range(30):
        first, ids = step % layers * experts, rng.integers(0, experts, k).astype(np.int32)
        place[(1,)](
            ops.integers(ids), table, owner, stamp, fresh, clock, loads, counts, first, k,
            SLOTS=slots, BLOCK=16, GUESS=False,
        )  # fmt: skip
        expected = twin.place((first + ids).tolist(), step + 1)
        misses += sum(slot >= 0 for slot in expected)
        np.testing.assert_array_equal(host(loads), expected)
        np.testing.assert_array_equal(host(owner), twin.owner)
        np.testing.assert_array_equal(host(owner)[host(table)[first + ids]], first + ids)
    assert host(counts).tolist() == [misses, 30 * k, 0, 0]


def test_a_guess_brings_experts_without_evicting_what_the_layer_before_uses(ops: Any) -> None:
    from flashmoe.ops.cuda.kernels.placement import place

    experts, slots = 8, 4
    table = ops.integers(np.full(2 * experts, -1, dtype=np.int32))
    owner = ops.integers(np.full(slots, -1, dtype=np.int32))
    stamp, fresh, clock = (ops.integers(np.zeros(n, dtype=np.int32)) for n in (slots, slots, 1))
    counts = ops.state((4,), "i8")

    def placed(layer: int, ids: list[int], *, guess: bool) -> list[int]:
        loads = ops.integers(np.zeros(len(ids), dtype=np.int32))
        place[(1,)](
            ops.integers(np.array(ids, dtype=np.int32)), table, owner, stamp, fresh, clock, loads,
            counts, layer * experts, len(ids), SLOTS=slots, BLOCK=4, GUESS=guess,
        )  # fmt: skip
        return host(loads).astype(int).tolist()

    assert placed(0, [3, 5], guess=False) == [0, 1]
    assert placed(1, [1, 2], guess=True) == [2, 3]
    assert host(owner).tolist() == [3, 5, experts + 1, experts + 2]
    # One guess was right; what was not asked for goes as early as what the layer before used.
    assert placed(1, [1, 7], guess=False) == [-1, 0]
    assert host(counts).tolist() == [3, 4, 2, 1]
