"""What each layer's experts lose in each format, and the formats for a size that lose least.

A layer's loss is the mean square error of what its experts add to a token: over the tokens of the
calibration, the sum over its experts of (routing weight * |error of the expert's output|)^2. All
layers add to one residual stream, so that losses of layers are summed as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.directory import Source
from flashmoe.errors import UsageError
from flashmoe.quant import Format, gptq
from flashmoe.quant.budget import allocate
from flashmoe.quant.layout import Floats
from flashmoe.store.calibration import Calibration, LayerInputs
from flashmoe.store.expert_inputs import blend, first_tokens, hidden, moments, weights
from flashmoe.store.format import ExpertFormats, ExpertLayout, expert_key, stored_by
from flashmoe.store.plan import CopyVector, EncodeMatrix, Item, PackPlan

CANDIDATES = ("q2", "q3", "q4")
# Experts of a layer that stand for all, and tokens of each.
SAMPLED_EXPERTS = 8
_SAMPLED_TOKENS = 1024


def formats_for_bits(
    checkpoint: Source, calibration: Calibration, plan: PackPlan, bits: float, group: int
) -> dict[int, ExpertFormats]:
    """The formats of q2, q3 and q4 for each layer's gate and up, and down, that lose least.

    Args:
        plan: of a pack of the same experts in any formats.
        bits: mean stored bits per expert weight, scales included, records' padding not.

    Raises UsageError (bits below the smallest format, a calibration of another model).
    """
    layout = plan.manifest.experts
    formats = [Format(name, group) for name in CANDIDATES]
    choices = [ExpertFormats(*both) for both in itertools.product(formats, repeat=2)]
    layers = [layer.layer for layer in plan.manifest.layers]
    costs = np.array([[_bytes(layout, choice) for choice in choices]] * len(layers), np.int64)
    budget = _budget(costs, bits, 3 * layout.hidden_size * layout.intermediate_size)
    losses = layer_losses(checkpoint, calibration, plan, formats)
    of_layers = [losses[layer] for layer in layers]
    table = np.array(
        [[one.gate_up[of.gate_up] + one.down[of.down] for of in choices] for one in of_layers]
    )
    chosen = allocate(costs, table, budget)
    return {layer: choices[at] for layer, at in zip(layers, chosen, strict=True)}


def _budget(costs: NDArray[np.int64], bits: float, weights_: int) -> int:
    """Bytes of an expert of each layer together, of costs [layers, choices]; weights_: of one."""
    least, most = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    wanted = bits * weights_ * len(costs) / 8
    if not wanted >= least:  # nor for NaN
        expected = f"at least {8 * costs.min() / weights_:.4g}"
        raise UsageError("too few bits", where="--experts-bits", expected=expected, got=bits)
    return int(min(wanted, most))


@dataclass(frozen=True)
class LayerLosses:
    """Mean square error per token of a layer with one of its matrices in a format, by format."""

    gate_up: dict[Format, float]
    down: dict[Format, float]


def layer_losses(
    checkpoint: Source, calibration: Calibration, plan: PackPlan, formats: Sequence[Format]
) -> dict[int, LayerLosses]:
    """Of every layer that has experts of its own, from a sample of them."""
    layout = plan.manifest.experts
    items = {item.key: item for item in plan.items}
    found = {}
    for layer in plan.manifest.layers:
        inputs = calibration.layer(layer.layer, layout.hidden_size, layout.num_experts)
        sample = _spread(layout.num_experts)
        losses = LayerLosses(dict.fromkeys(formats, 0.0), dict.fromkeys(formats, 0.0))
        for expert in sample:
            item = items[expert_key(stored_by(layer), expert)]
            _add_expert(losses, checkpoint, item, inputs, expert)
        scale = layout.num_experts / len(sample) / len(inputs.x)
        found[layer.layer] = LayerLosses(
            {name: loss * scale for name, loss in losses.gate_up.items()},
            {name: loss * scale for name, loss in losses.down.items()},
        )
    return found


def _spread(experts: int) -> list[int]:
    """Some experts from the first to the last."""
    count = min(experts, SAMPLED_EXPERTS)
    return [n * experts // count for n in range(count)]


def _add_expert(
    losses: LayerLosses, checkpoint: Source, item: Item, inputs: LayerInputs, expert: int
) -> None:
    """Adds the square errors of an expert, over all its tokens."""
    assert not isinstance(item.parts, CopyVector), "not a record"
    gate_up, down = (part for part in item.parts if isinstance(part, EncodeMatrix))
    x, routed = inputs.of_expert(expert)
    every = first_tokens(inputs)
    first, second = weights(checkpoint, gate_up), weights(checkpoint, down)
    seen = blend(moments(x, routed), moments(every, _ones(every)), len(x))
    middle = blend(
        moments(hidden(x, first), routed), moments(hidden(every, first), _ones(every)), len(x)
    )
    few = slice(0, _SAMPLED_TOKENS)
    share = np.square(routed[few]) * (len(x) / max(1, len(x[few])))
    exact = hidden(x[few], first)
    for format_ in losses.gate_up:
        rounded = format_.decode(gptq.encode(first, seen, format_), *first.shape)
        error = (hidden(x[few], rounded) - exact) @ second.T
        losses.gate_up[format_] += float(share @ np.square(error).sum(axis=1))
        rounded = format_.decode(gptq.encode(second, middle, format_), *second.shape)
        error = exact @ (rounded - second).T
        losses.down[format_] += float(share @ np.square(error).sum(axis=1))


def _ones(x: Floats) -> Floats:
    return np.ones(len(x), np.float32)


def _bytes(layout: ExpertLayout, formats: ExpertFormats) -> int:
    """Of an expert's matrices, without padding."""
    stored = layout.of(formats)
    return stored.gate_up_bytes + stored.down_bytes
