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
from flashmoe.errors import UsageError
from flashmoe.quant import gptq
from flashmoe.quant.layout import Bytes
from flashmoe.store.calibration import Calibration
from flashmoe.store.expert_inputs import blend, first_tokens, hidden, moments, weights
from flashmoe.store.format import Manifest, expert_key, stored_by
from flashmoe.store.plan import CopyVector, EncodeMatrix, Item, PackPlan


def _expect_fitting(manifest: Manifest) -> None:
    """Raises UsageError for experts that cannot be calibrated."""
    layout = manifest.experts
    formats = {one.name for own in manifest.layouts.values() for one in (own.gate_up, own.down)}
    plain = layout.activation == "swiglu" and not layout.bias
    if not plain or not formats <= set(gptq.CALIBRATED):
        raise UsageError(
            "calibration does not fit these experts",
            where="--calibration",
            expected="plain SwiGLU experts in " + " | ".join(gptq.CALIBRATED),
            got=f"{layout.activation} in {' and '.join(sorted(formats))}",
        )


class CalibratedExperts:
    """Makes the records of experts. Raises UsageError for experts that it cannot calibrate."""

    def __init__(self, calibration: Calibration, plan: PackPlan) -> None:
        _expect_fitting(plan.manifest)
        layout = plan.manifest.experts
        self._places = {
            expert_key(stored_by(layer), expert): (layer.layer, expert)
            for layer in plan.manifest.layers
            if layer.shares is None
            for expert in range(layout.num_experts)
        }
        self._inputs = functools.lru_cache(maxsize=1)(
            functools.partial(
                calibration.layer, hidden=layout.hidden_size, experts=layout.num_experts
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
        seen = blend(moments(x, routed), self._pooled(layer), len(x))
        stored = gptq.encode(weights(checkpoint, gate_up), seen, gate_up.format)
        record[: len(stored)] = stored
        rounded = gate_up.format.decode(stored, gate_up.rows, gate_up.cols)
        everywhere = hidden(first_tokens(inputs), rounded)
        pooled = moments(everywhere, np.ones(len(everywhere), np.float32))
        seen = blend(moments(hidden(x, rounded), routed), pooled, len(x))
        stored = gptq.encode(weights(checkpoint, down), seen, down.format)
        record[down.at : down.at + len(stored)] = stored
        yield record

    def _pooled_moments(self, layer: int) -> NDArray[np.float64]:
        x = first_tokens(self._inputs(layer))
        return moments(x, np.ones(len(x), np.float32))
