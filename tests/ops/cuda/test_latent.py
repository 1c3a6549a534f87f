"""Latent attention, maps per head and sigmoid routing against their NumPy twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe.ops import reference_layers as ref
from flashmoe.ops import reference_linear
from flashmoe.ops.parts import SigmoidRouting
from flashmoe.quant import Format
from tests.ops.cuda.test_products import bound, error, host, stored
from tests.support.tolerances import CUDA_ATTENTION_F16, CUDA_BF16, CUDA_ROW

pytestmark = pytest.mark.cuda


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


# tokens, start, heads, latent width, rotated width, cache type
CASES = [
    (1, 0, 4, 64, 16, "f4"),
    (1, 70, 20, 40, 8, "f2"),
    (3, 33, 5, 24, 10, "f4"),
    (18, 5, 3, 72, 4, "f4"),
    (17, 40, 33, 16, 16, "f2"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_latent_attention_over_what_was_stored(
    ops: Any, rng: np.random.Generator, case: tuple[Any, ...]
) -> None:
    from flashmoe.ops.cuda import latent

    tokens, start, heads, rank, rope, kind = case
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x, key, norm = normal(tokens, rank + 3), normal(tokens, rope), normal(rank)
    cos, sin = normal(tokens, rope // 2), normal(tokens, rope // 2)
    q, turned = normal(tokens, heads, rank), normal(tokens, heads, rope)
    cache = normal(1, 128, rank + rope).astype(kind)
    on_card, at = ops.vector(cache.copy()), ops.position(start)
    turn = ops.vector(cos), ops.vector(sin)
    latent.store(ops.vector(x)[:, :rank], ops.vector(key), ops.vector(norm), turn, on_card, at)
    rows = slice(start, start + tokens)
    cache[0, rows, :rank] = ref.rms_norm(x[:, :rank], norm, 1e-6)
    cache[0, rows, rank:] = ref.head_norm_rope(key[:, None], None, 0, cos, sin)[:, 0]
    loose = CUDA_ATTENTION_F16 if kind == "f2" else CUDA_ROW
    assert error(on_card.float(), cache.astype(np.float32)) <= loose
    scale = (rank + rope) ** -0.5
    got = latent.attend(ops.vector(q), ops.vector(turned), turn, on_card, at, scale)
    full = np.concatenate([q, ref.head_norm_rope(turned, None, 0, cos, sin)], axis=2)
    expected = ref.attention(full.astype(np.float32), cache, cache[..., :rank], start, scale)
    assert error(got, expected) <= loose


FORMATS = [Format("q4", 32), Format("q8", 32), Format("q3", 32), Format("bf16")]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 19])
@pytest.mark.parametrize(("heads", "rows"), [(3, 8), (2, 40)])
def test_maps_per_head(
    ops: Any, rng: np.random.Generator, fmt: Format, tokens: int, heads: int, rows: int
) -> None:
    from flashmoe.ops.cuda import latent

    matrix, w = stored(ops, rng, fmt, heads * rows, 96)
    x = rng.standard_normal((tokens, heads, 100)).astype(np.float32)
    got = latent.head_linear(ops.vector(x)[..., :96], matrix)
    expected = reference_linear.head_linear(x[..., :96], w.astype(np.float32), 0)
    assert error(got, expected) <= bound(fmt, tokens)


# experts, groups, groups that are chosen, experts per token
ROUTERS = [(64, 8, 3, 6), (60, 5, 2, 4), (24, 1, 1, 5), (6, 3, 3, 6), (5, 5, 2, 2)]


@pytest.mark.parametrize("router", ROUTERS, ids=str)
@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("renormalize", [True, False])
def test_sigmoid_routing(
    ops: Any,
    rng: np.random.Generator,
    router: tuple[int, int, int, int],
    tokens: int,
    renormalize: bool,
) -> None:
    experts, groups, chosen, k = router
    gate, w = stored(ops, rng, Format("bf16"), experts, 64)
    x = (0.3 * rng.standard_normal((tokens, 64))).astype(np.float32)
    correction, weight = (rng.standard_normal(n).astype(np.float32) for n in (experts, 64))
    how = SigmoidRouting(ops.vector(correction), groups, chosen, 2.5)
    normed = ops.rms_norm(ops.vector(x), ops.vector(weight), 1e-6)
    ids, weights = ops.route(normed, gate, k, renormalize, None, how)
    logits = ref.rms_norm(x, weight, 1e-6) @ w.T
    shape = (groups, chosen, k, renormalize, 2.5)
    expected_ids, expected = ref.sigmoid_topk(logits.astype(np.float32), correction, *shape)
    np.testing.assert_array_equal(host(ids), expected_ids)
    assert error(weights, expected) <= 3 * CUDA_BF16


def test_a_bias_of_the_router_counts(ops: Any, rng: np.random.Generator) -> None:
    gate, w = stored(ops, rng, Format("bf16"), 12, 64)
    x: NDArray[np.float32] = rng.standard_normal((3, 64)).astype(np.float32)
    bias = (5 * rng.standard_normal(12)).astype(np.float32)
    ids, weights = ops.route(ops.vector(x), gate, 4, True, ops.vector(bias))
    logits = (x.astype(np.float64) @ w.T + bias).astype(np.float32)
    expected_ids, expected = ref.softmax_topk(logits, 4, True, 1.0)
    np.testing.assert_array_equal(host(ids), expected_ids)
    assert error(weights, expected) <= 3 * CUDA_BF16


def test_ids_stay_within_the_table(ops: Any, rng: np.random.Generator) -> None:
    gate, _ = stored(ops, rng, Format("bf16"), 5, 64)
    x = np.full((1, 64), np.nan, dtype=np.float32)
    how = SigmoidRouting(ops.vector(np.zeros(5, np.float32)), 1, 1, 1.0)
    ids, _ = ops.route(ops.vector(x), gate, 3, True, None, how)
    assert ((host(ids) >= 0) & (host(ids) < 5)).all()
