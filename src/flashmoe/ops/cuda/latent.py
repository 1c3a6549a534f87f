"""Latent attention on a card: ops/plain_parts.py step by step, fewer kernels for the same steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from flashmoe.ops.cuda import products
from flashmoe.ops.cuda.handles import DeviceMatrix
from flashmoe.ops.cuda.kernels import attention as attending
from flashmoe.ops.cuda.kernels import latent as kernels
from flashmoe.ops.cuda.products import FEW_TOKENS, next_power
from flashmoe.ops.parts import LATENT_EPS, LatentAttentionWeights, LatentSpans

if TYPE_CHECKING:
    from flashmoe.ops.cuda.backend import CudaOps

# Stretches that the positions are cut into for a few tokens: one token alone keeps a card busy.
_SPLITS = 32
Turn = tuple[torch.Tensor, torch.Tensor]


def add_latent_attention(
    ops: CudaOps, h: torch.Tensor, w: LatentAttentionWeights, rope: Turn, spans: LatentSpans
) -> None:
    """h [T, H] += latent attention of norm(h)."""
    values = head_linear(_attended(ops, h, w, rope, spans), w.v_up)
    ops.linear_add(values.reshape(len(h), -1), w.o_proj, h)


def _attended(
    ops: CudaOps, h: torch.Tensor, w: LatentAttentionWeights, rope: Turn, spans: LatentSpans
) -> torch.Tensor:
    """Sums of latent vectors [T, Hq, R]; the queries, as large, go with the call."""
    latent, key, q_nope, q_rope = _projections(ops, h, w)
    q = head_linear(q_nope.unflatten(1, (w.num_heads, -1)), w.k_up)
    turned = q_rope.unflatten(1, (w.num_heads, -1))
    outs = []
    for begin, end, start, cache in spans:
        rows, at = slice(begin, end), ops.position(start)
        turn = (rope[0][rows], rope[1][rows])
        kept: Any = cache.rows
        store(latent[rows], key[rows], w.kv_norm, turn, kept, at)
        outs.append(attend(q[rows], turned[rows], turn, kept, at, w.scale))
    return ops.concat(outs)


def _projections(
    ops: CudaOps, h: torch.Tensor, w: LatentAttentionWeights
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """h [T, H] -> latent [T, R], key [T, P], q_nope [T, Hq * N], q_rope [T, Hq * P]; not normed."""
    norm: Any = w.norm
    x = ops.rms_norm(h, norm, w.eps)
    if w.q_a_proj is None or w.q_a_norm is None:
        latent, key, q_nope, q_rope = ops.linear(x, w.kv_latent, w.k_rope, w.q_nope, w.q_rope)
        return latent, key, q_nope, q_rope
    latent, key, low = ops.linear(x, w.kv_latent, w.k_rope, w.q_a_proj)
    q_norm: Any = w.q_a_norm
    narrow = ops.rms_norm(low.contiguous(), q_norm, LATENT_EPS)
    q_nope, q_rope = ops.linear(narrow, w.q_nope, w.q_rope)
    return latent, key, q_nope, q_rope


def store(
    latent: torch.Tensor, key: torch.Tensor, norm: Any, turn: Turn, cache: torch.Tensor,
    start: torch.Tensor,
) -> None:  # fmt: skip
    """The norm of latent [T, R] and key [T, P], rotated, -> rows of the cache [1, context, R + P].

    start int32 [1]: position of the first token."""
    rank, rope = latent.shape[1], key.shape[1]
    kernels.store_latent[(len(latent),)](
        latent, key, norm, *turn, cache, start, LATENT_EPS, latent.stride(0), key.stride(0),
        RANK=rank, ROPE=rope, HALF=rope // 2, BLOCK=next_power(rank), ROPE_BLOCK=next_power(rope),
    )  # fmt: skip


def attend(
    q: torch.Tensor, turned: torch.Tensor, turn: Turn, cache: torch.Tensor, start: torch.Tensor,
    scale: float,
) -> torch.Tensor:  # fmt: skip
    """q [T, Hq, R] and turned [T, Hq, P], to be rotated, over the rows 0..start + t of the cache
    -> [T, Hq, R]."""
    tokens, heads, rank = q.shape
    rope, splits = turned.shape[2], _SPLITS if len(q) <= FEW_TOKENS else 1
    exact = cache.dtype == torch.float32
    block = 16 if exact else min(32, max(16, next_power(heads)))
    out, parts = torch.empty_like(q), q.new_empty(tokens, heads, splits, rank if splits > 1 else 0)
    peaks, sums = q.new_empty(tokens, heads, splits), q.new_empty(tokens, heads, splits)
    kernels.attend_latent[(triton.cdiv(heads, block), splits, tokens)](
        q, turned, *turn, cache, start, out, parts, peaks, sums, scale,
        turned.stride(0), turned.stride(1),
        HEADS=heads, RANK=rank, ROPE=rope, HALF=rope // 2, SPLITS=splits, BM=block,
        BN=16 if exact else 32, BLOCK=next_power(rank), ROPE_BLOCK=max(16, next_power(rope)),
        num_warps=4, num_stages=1,
    )  # fmt: skip
    if splits > 1:
        attending.attend_join[(heads, tokens)](
            parts, peaks, sums, sums, out, HEADS=heads, D=rank, SPLITS=splits,
            BLOCK=next_power(rank), SINKS=False, num_warps=4,
        )  # fmt: skip
    return out


def head_linear(x: torch.Tensor, matrix: DeviceMatrix) -> torch.Tensor:
    """A linear map per head: x [T, heads, cols] @ W[head].T -> [T, heads, N], N a multiple of 8.

    matrix [heads * N, cols]; x strided in the first two axes."""
    tokens, heads, cols = x.shape
    out = x.new_empty(tokens, heads, matrix.rows // heads)
    if tokens > FEW_TOKENS:
        _many_heads(x, matrix, out)
        return out
    fmt = matrix.format
    kernels.head_gemv[(matrix.blocks, tokens)](
        x, matrix.data, out, x.stride(0), x.stride(1), matrix.blocks // heads,
        COLS=cols, FORMAT=fmt.name, GROUP=fmt.group,
        **products.unit_tile(fmt, cols),
    )  # fmt: skip
    return out


def _many_heads(x: torch.Tensor, matrix: DeviceMatrix, out: torch.Tensor) -> None:
    """As products of rows grouped by expert, with heads for experts."""
    tokens, heads, cols = x.shape
    by_head = x.transpose(0, 1).reshape(heads * tokens, cols)
    w = products.dequantize(products.Source.of(matrix), pairs=False).view(heads, -1, cols)
    rows = out.view(tokens * heads, -1)
    planes = products.split(by_head, matrix.format)
    products.grouped_rows(planes, w, rows.shape[1], rows, _head_tiles(tokens, heads, x.device), 0)


def _head_tiles(tokens: int, heads: int, device: torch.device) -> products.Tiles:
    """Rows sorted by head, whose results go back to the order of tokens."""
    size = min(128, max(16, next_power(tokens)))
    per_head = triton.cdiv(tokens, size)

    def numbers(count: int) -> torch.Tensor:
        return torch.arange(count, dtype=torch.int32, device=device)

    head = numbers(heads * per_head) // per_head
    position = numbers(heads * tokens)
    return products.Tiles(
        size=size,
        order=position % tokens * heads + position // tokens,
        experts=head,
        starts=head * tokens + numbers(heads * per_head) % per_head * size,
        offsets=numbers(heads + 1) * tokens,
        counts=head,
    )
