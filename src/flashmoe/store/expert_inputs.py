"""Moments of what an expert is given, from a calibration: what its rounding has an eye on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.directory import Source
from flashmoe.checkpoint.safetensors import to_float32
from flashmoe.quant.layout import ROWS, Floats, from_bf16
from flashmoe.store.calibration import LayerInputs
from flashmoe.store.encode import check_finite
from flashmoe.store.plan import EncodeMatrix
from flashmoe.store.stream import read_rows

# An expert with so many tokens trusts its own inputs and the layer's half and half.
_EVEN_TOKENS = 256
# Tokens of the layer that stand for all where an expert has too few.
_POOLED_TOKENS = 2048


def first_tokens(inputs: LayerInputs) -> Floats:
    """Inputs of the layer that stand for all, float32 [n, H], spread over the text."""
    return from_bf16(inputs.x[:: max(1, len(inputs.x) // _POOLED_TOKENS)])


def moments(x: Floats, weights: Floats) -> NDArray[np.float64]:
    """The mean of x x^T [n, n] over rows of x [tokens, n], weighted with weights^2."""
    share = np.square(weights, dtype=np.float64)
    scaled = (x * np.sqrt(share / max(share.sum(), 1e-30))[:, None]).astype(np.float32)
    mean: NDArray[np.float64] = (scaled.T @ scaled).astype(np.float64)
    return mean


def blend(
    own: NDArray[np.float64], pooled: NDArray[np.float64], tokens: int
) -> NDArray[np.float64]:
    """Moments of an expert's own inputs and of its layer's, by how many it has."""
    trust = tokens / (tokens + _EVEN_TOKENS)
    return trust * own + (1 - trust) * pooled


def weights(checkpoint: Source, part: EncodeMatrix) -> Floats:
    """A matrix of the checkpoint, float32. Raises BadWeight where one is not finite."""
    raw = read_rows(checkpoint, part, 0, part.rows)
    values = to_float32(raw, part.sources[0].dtype)
    check_finite(values)
    return values


def hidden(x: Floats, gate_up: Floats) -> Floats:
    """silu(gate) * up of x [n, H]; gate_up [2 I, H] alternates in blocks of 8 rows -> [n, I]."""
    inner = len(gate_up) // 2
    pairs = (x @ gate_up.T).reshape(len(x), inner // ROWS, 2, ROWS)
    gate, up = pairs[:, :, 0], pairs[:, :, 1]
    with np.errstate(over="ignore"):
        product: Floats = (gate / (1 + np.exp(-gate)) * up).reshape(len(x), inner)
    return product
