"""Attention with sliding windows in rings and with sinks, against its NumPy twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flashmoe.ops import reference_layers as ref
from tests.ops.cuda.test_layers import floats
from tests.ops.cuda.test_products import error
from tests.support.tolerances import CUDA_ATTENTION_F16, CUDA_ROW

pytestmark = pytest.mark.cuda

# tokens, start, query heads, key heads, head_dim, window, ring, sinks, cache type
CASES = [
    (1, 0, 8, 2, 64, 8, 64, True, "f4"),
    (1, 300, 6, 2, 24, 100, 128, True, "f2"),
    (3, 62, 4, 4, 32, 5, 64, False, "f4"),
    (2, 40, 4, 2, 16, 0, 64, True, "f4"),
    (20, 120, 4, 1, 32, 7, 64, True, "f4"),
    (130, 7, 2, 1, 32, 40, 192, True, "f2"),
    (70, 200, 2, 2, 16, 1, 128, False, "f4"),
    (40, 3, 4, 2, 32, 0, 64, True, "f4"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_over_a_ring(ops: Any, case: tuple[Any, ...]) -> None:
    tokens, start, heads, key_heads, dim, window, ring, has_sinks, kind = case
    q, k, v = (floats(tokens, n, dim) for n in (heads, key_heads, key_heads))
    cos, sin = floats(tokens, dim // 2), floats(tokens, dim // 2)
    sinks = 3 * floats(heads) if has_sinks else None
    keys, values = (floats(key_heads, ring, dim).astype(kind) for _ in range(2))
    device_keys, device_values = (ops.vector(cache.copy()) for cache in (keys, values))
    turn = (None, 1e-6, ops.vector(cos), ops.vector(sin))
    rotated = ops.head_norm_rope(ops.vector(k), *turn)
    ops.kv_store(rotated, ops.vector(v), device_keys, device_values, start, window)
    slots = np.arange(start, start + tokens) % ring
    keys[:, slots] = ref.head_norm_rope(k, None, 0, cos, sin).transpose(1, 0, 2)
    values[:, slots] = v.transpose(1, 0, 2)
    loose = CUDA_ATTENTION_F16 if kind == "f2" else CUDA_ROW
    got = ops.attention(
        ops.head_norm_rope(ops.vector(q), *turn), device_keys, device_values, start, dim**-0.5,
        window, None if sinks is None else ops.vector(sinks),
    )  # fmt: skip
    turned = ref.head_norm_rope(q, None, 0, cos, sin).astype(np.float32)
    expected = ref.attention(turned, keys, values, start, dim**-0.5, window, sinks)
    assert error(got, expected) <= loose
    # A single token is stored by the attention itself.
    assert error(device_keys.float(), keys.astype(np.float32)) <= loose
