"""Slow twins of the native layer kernels: plain loops and float64 inside, nothing shared with C++.

Each function returns what its native counterpart writes. The in/out arguments of the kernels
(states, gates) are inputs here, and new arrays are returned. Results are float64 unless said.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Caches = NDArray[np.float32] | NDArray[np.float16]


def _double(x: NDArray[np.floating]) -> Doubles:
    return x.astype(np.float64)


def sigmoid(x: NDArray[np.floating]) -> Doubles:
    """1 / (1 + e^-x) of an array of any shape, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * _double(x)))


def silu(x: NDArray[np.floating]) -> Doubles:
    """x * sigmoid(x)."""
    return _double(x) * sigmoid(x)


def rms_norm(x: NDArray[np.floating], weight: Floats, eps: float) -> Doubles:
    """x [..., D], weight [D] -> x / sqrt(mean(x^2) + eps) * weight."""
    mean: Doubles = np.mean(_double(x) ** 2, axis=-1, keepdims=True)
    scale: Doubles = _double(weight) / np.sqrt(mean + eps)
    return _double(x) * scale


def gated_rms_norm(x: Floats, gate: Floats, weight: Floats, eps: float) -> Doubles:
    """x, gate [N, D], weight [D] -> rms_norm(x) * silu(gate)."""
    return rms_norm(x, weight, eps) * silu(gate)


def head_norm_rope(
    x: Floats, weight: Floats | None, eps: float, cos: Floats, sin: Floats
) -> Doubles:
    """x [T, H, D]; norm per head unless weight is None, then rope on the first 2 * R/2 dims.

    cos, sin [T, R/2]. A pair (i, i + R/2) is a complex number, turned by the angle.
    """
    y = _double(x) if weight is None else rms_norm(x, weight, eps)
    half = cos.shape[1]
    turn = (_double(cos) + 1j * _double(sin))[:, None, :]
    turned = (y[..., :half] + 1j * y[..., half : 2 * half]) * turn
    return np.concatenate([turned.real, turned.imag, y[..., 2 * half :]], axis=-1)


def attention(
    q: Floats,
    keys: Caches,
    values: Caches,
    start: int,
    scale: float,
    window: int = 0,
    sinks: Floats | None = None,
) -> Doubles:
    """q [T, Hq, D], caches [Hkv, ctx, D] and [Hkv, ctx, Dv] -> [T, Hq, Dv]; query t sees positions
    0..start + t.

    window: the last of these only (0: all); position p lies at p modulo ctx. sinks [Hq]: per head
    the score of one more key, of value zero.
    """
    tokens, heads, _ = q.shape
    group = heads // keys.shape[0]
    out = np.empty((tokens, heads, values.shape[2]))
    for t in range(tokens):
        end = start + t + 1
        seen = np.arange(max(0, end - window) if window else 0, end) % keys.shape[1]
        for head in range(heads):
            k = _double(keys[head // group, seen])
            v = _double(values[head // group, seen])
            scores = k @ _double(q[t, head]) * scale
            sink = -np.inf if sinks is None else float(sinks[head])
            largest = max(scores.max(), sink)
            weights = np.exp(scores - largest)
            out[t, head] = weights @ v / (weights.sum() + np.exp(sink - largest))
    return out


def index_topk(
    q: Floats, weights: Floats, keys: Caches, seen: NDArray[np.int32], k: int
) -> NDArray[np.int32]:
    """q [T, Hi, Di], weights [T, Hi], keys [context, Di] -> the k best of keys 0..seen[t] - 1 per
    token, int32 [T, k], ascending; -1 where fewer are seen."""
    ids = np.full((len(q), k), -1, dtype=np.int32)
    for t, count in enumerate(seen.tolist()):
        products = np.maximum(_double(q[t]) @ _double(keys[:count]).T, 0.0)
        scores = (_double(weights[t]) @ products).astype(np.float32)  # ties are decided in float32
        best = np.sort(np.argsort(-scores, kind="stable")[:k])
        ids[t, : len(best)] = best
    return ids


def sigmoid_gate(x: Floats, gate: Floats) -> Doubles:
    """x * sigmoid(gate), both [T, H, D]."""
    return _double(x) * sigmoid(gate)


def causal_conv_silu(u: Floats, weight: Floats, state: Floats) -> tuple[Doubles, Floats]:
    """u [T, C], weight [C, W], state [W - 1, C] -> (out [T, C], new state).

    The last tap multiplies the newest input; the state is the last W - 1 inputs, oldest first.
    """
    inputs = np.concatenate([state, u])
    windows = np.lib.stride_tricks.sliding_window_view(inputs, weight.shape[1], axis=0)
    out = silu(np.einsum("tcw,cw->tc", _double(windows), _double(weight)))
    newest: Floats = inputs[len(u) :]
    return out, newest


def gated_delta(
    qkv: Floats,
    a: Floats,
    b: Floats,
    a_log: Floats,
    dt_bias: Floats,
    state: Floats,
    key_heads: int,
) -> tuple[Doubles, Doubles]:
    """The gated delta rule, one matrix per head and token -> (out [T, Hv, Dv], new state).

    qkv [T, 2 * Hk * Dk + Hv * Dv]; a, b [T, Hv]; a_log, dt_bias [Hv]; state [Hv, Dk, Dv].
    """
    tokens, (heads, key_dim, value_dim) = len(qkv), state.shape
    out, carried = np.empty((tokens, heads, value_dim)), _double(state)
    for head in range(heads):
        columns = (head // (heads // key_heads)) * key_dim + np.arange(key_dim)
        q = _unit(qkv[:, columns]) / math.sqrt(key_dim)
        k = _unit(qkv[:, key_heads * key_dim + columns])
        first = 2 * key_heads * key_dim + head * value_dim
        v = _double(qkv[:, first : first + value_dim])
        softplus = np.logaddexp(0.0, _double(a[:, head]) + float(dt_bias[head]))
        decay, beta = np.exp(-math.exp(a_log[head]) * softplus), sigmoid(b[:, head])
        for t in range(tokens):
            carried[head] = _delta_step(carried[head], k[t], v[t], decay[t], beta[t])
            out[t, head] = q[t] @ carried[head]
    return out, carried


def _unit(x: Floats) -> Doubles:
    length: Doubles = np.sqrt(np.sum(_double(x) ** 2, axis=-1, keepdims=True) + 1e-6)
    return _double(x) / length


def _delta_step(state: Doubles, k: Doubles, v: Doubles, decay: float, beta: float) -> Doubles:
    # S <- decay (I - beta k k^T) S + beta k v^T: the rule as one affine map of the state.
    shrink = np.eye(len(k)) - beta * np.outer(k, k)
    return np.asarray(decay * shrink @ state + beta * np.outer(k, v))


def softmax_topk(
    logits: Floats, topk: int, renormalize: bool, scale: float
) -> tuple[NDArray[np.int32], Doubles]:
    """logits [T, E] -> ids [T, K] by falling logit (equal: lower id first), weights [T, K]."""
    shifted = _double(logits) - _double(logits).max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :topk]
    weights = np.take_along_axis(probabilities, ids, axis=1)
    if renormalize:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return ids.astype(np.int32), weights * scale


def sigmoid_topk(
    logits: Floats,
    correction: Floats,
    groups: int,
    chosen_groups: int,
    topk: int,
    renormalize: bool,
    scale: float,
) -> tuple[NDArray[np.int32], Doubles]:
    """logits [T, E], correction [E] -> ids [T, K] by falling corrected sigmoid (equal: lower id
    first) within the groups whose two best have the largest sum, weights [T, K]."""
    sigmoids = sigmoid(logits)
    # Ties are decided in float32.
    ids = grouped_topk(sigmoids.astype(np.float32), correction, groups, chosen_groups, topk)
    weights = np.take_along_axis(sigmoids, ids, axis=1)
    if renormalize:
        weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-20)
    return ids, weights * scale


def grouped_topk(
    sigmoids: Floats, correction: Floats, groups: int, chosen_groups: int, topk: int
) -> NDArray[np.int32]:
    """sigmoids [T, E] -> the ids [T, K] of sigmoid_topk."""
    grouped = (sigmoids + correction).reshape(len(sigmoids), groups, -1)
    best = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    chosen = np.argsort(-best, axis=1, kind="stable")[:, :chosen_groups]
    kept = np.zeros((len(sigmoids), groups), dtype=bool)
    np.put_along_axis(kept, chosen, True, axis=1)
    allowed = np.where(kept[:, :, None], grouped, -np.inf).reshape(sigmoids.shape)
    return np.argsort(-allowed, axis=1, kind="stable")[:, :topk].astype(np.int32)


def combine(rows: Floats, weights: Floats, out: Floats) -> Doubles:
    """rows [T * K, H], weights [T, K] -> out [T, H] + the weighted sum of each token's rows."""
    tokens, topk = weights.shape
    grouped = _double(rows).reshape(tokens, topk, rows.shape[1])
    total: Doubles = np.einsum("tk,tkh->th", _double(weights), grouped)
    return _double(out) + total
