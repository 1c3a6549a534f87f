"""Expert records rounded with an eye on what the experts are given: GPTQ per matrix.

Gate and up see the inputs of the tokens routed to the expert, weighted with the square of their
routing weight; down sees what the rounded gate and up make of them. Experts with few tokens lean on
those of the whole layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.safetensors import to_float32
from flashmoe.errors import UsageError
from flashmoe.quant import gptq
from flashmoe.quant.layout import ROWS, Bytes, Floats, from_bf16
from flashmoe.store.calibration import Calibration, LayerInputs
from flashmoe.store.encode import check_finite
from flashmoe.store.plan import CopyVector, EncodeMatrix, Item, PackPlan, expert_key, stored_by
from flashmoe.store.stream import read_rows

# An expert with so many tokens trusts its own inputs and the layer's half and half.
_EVEN_TOKENS = 256
# Tokens of the layer that stand for all where an expert has too few.
_POOLED_TOKENS = 2048


class CalibratedExperts:
    """Makes the records of experts. Raises UsageError for experts that it cannot calibrate."""

    def __init__(self, calibration: Calibration, plan: PackPlan) -> None:
        self._layout = plan.manifest.experts
        layouts = plan.manifest.layouts.values()
        formats = {one.name for layout in layouts for one in (layout.gate_up, layout.down)}
        plain = self._layout.activation == "swiglu" and not self._layout.bias
        if not plain or not formats <= set(gptq.CALIBRATED):
            raise UsageError(
                "calibration does not fit these experts",
                where="--calibration",
                expected="plain SwiGLU experts in " + " | ".join(gptq.CALIBRATED),
                got=f"{self._layout.activation} in {' and '.join(sorted(formats))}",
            )
        self._places = {
            expert_key(stored_by(layer), expert): (layer.layer, expert)
            for layer in plan.manifest.layers
            if layer.shares is None
            for expert in range(self._layout.num_experts)
        }
        self._inputs = functools.lru_cache(maxsize=1)(
            functools.partial(
                calibration.layer,
                hidden=self._layout.hidden_size,
                experts=self._layout.num_experts,
            )
        )
        self._pooled = functools.lru_cache(maxsize=1)(self._pooled_moments)

    def makes(self, item: Item) -> bool:
        """Whether an item is the record of a routed expert."""
        return item.key in self._places

    def pieces(self, checkpoint: Source, item: Item) -> Iterator[Bytes]:
        """The bytes of a record, as store.stream.item_pieces gives them."""
        layer, expert = self._places[item.key]
        assert not isinstance(item.parts, CopyVector), "not a record"
        gate_up, down = (part for part in item.parts if isinstance(part, EncodeMatrix))
        record = np.zeros(item.nbytes, np.uint8)
        inputs = self._inputs(layer)
        x, routed = inputs.of_expert(expert)
        moments = _blend(_moments(x, routed), self._pooled(layer), len(x))
        stored = gptq.encode(_weights(checkpoint, gate_up), moments, gate_up.format)
        record[: len(stored)] = stored
        rounded = gate_up.format.decode(stored, gate_up.rows, gate_up.cols)
        everywhere = _hidden(_first_tokens(inputs), rounded)
        pooled = _moments(everywhere, np.ones(len(everywhere), np.float32))
        moments = _blend(_moments(_hidden(x, rounded), routed), pooled, len(x))
        stored = gptq.encode(_weights(checkpoint, down), moments, down.format)
        record[down.at : down.at + len(stored)] = stored
        yield record

    def _pooled_moments(self, layer: int) -> NDArray[np.float64]:
        x = _first_tokens(self._inputs(layer))
        return _moments(x, np.ones(len(x), np.float32))


def _first_tokens(inputs: LayerInputs) -> Floats:
    return from_bf16(inputs.x[:: max(1, len(inputs.x) // _POOLED_TOKENS)])


def _moments(x: Floats, weights: Floats) -> NDArray[np.float64]:
    """The mean of x x^T [n, n] over rows of x [tokens, n], weighted with weights^2."""
    share = np.square(weights, dtype=np.float64)
    scaled = (x * np.sqrt(share / max(share.sum(), 1e-30))[:, None]).astype(np.float32)
    moments: NDArray[np.float64] = (scaled.T @ scaled).astype(np.float64)
    return moments


def _blend(
    own: NDArray[np.float64], pooled: NDArray[np.float64], tokens: int
) -> NDArray[np.float64]:
    trust = tokens / (tokens + _EVEN_TOKENS)
    return trust * own + (1 - trust) * pooled


def _weights(checkpoint: Source, part: EncodeMatrix) -> Floats:
    raw = read_rows(checkpoint, part, 0, part.rows)
    weights = to_float32(raw, part.sources[0].dtype)
    check_finite(weights)
    return weights


def _hidden(x: Floats, gate_up: Floats) -> Floats:
    """silu(gate) * up of x [n, H]; gate_up [2 I, H] alternates in blocks of 8 rows -> [n, I]."""
    inner = len(gate_up) // 2
    pairs = (x @ gate_up.T).reshape(len(x), inner // ROWS, 2, ROWS)
    gate, up = pairs[:, :, 0], pairs[:, :, 1]
    with np.errstate(over="ignore"):
        hidden: Floats = (gate / (1 + np.exp(-gate)) * up).reshape(len(x), inner)
    return hidden
