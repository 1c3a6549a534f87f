"""The gated delta rule on a card: token by token, and block by block for what a prompt has of
whole blocks at absolute positions, as on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from flashmoe.ops.cuda.kernels import delta, delta_chunked
from flashmoe.ops.cuda.products import next_power
from flashmoe.ops.parts import CHUNK_STEP, delta_spans

# Blocks that are prepared at a time: it bounds the memory, and changes no result.
_BLOCKS = 16


class Gates(NamedTuple):
    """a, b [T, Hv], strided alike; a_log, dt_bias [Hv]."""

    a: torch.Tensor
    b: torch.Tensor
    a_log: torch.Tensor
    dt_bias: torch.Tensor

    def part(self, rows: slice) -> Gates:
        """Of some of the tokens."""
        return Gates(self.a[rows], self.b[rows], self.a_log, self.dt_bias)


def gated_delta(
    qkv: torch.Tensor, gates: Gates, state: torch.Tensor, position: int | torch.Tensor
) -> torch.Tensor:
    """qkv [T, 2 Hk Dk + Hv Dv], state [Hv, Dk, Dv] updated -> [T, Hv, Dv].

    A position on the card is that of decode steps, which go token by token."""
    assert gates.a.stride(0) == gates.b.stride(0)
    heads, _, value_dim = state.shape
    out = qkv.new_empty(len(qkv), heads, value_dim)
    if isinstance(position, torch.Tensor):
        _recurrent(qkv, gates, state, out)
        return out
    for rows, chunk in delta_spans(position, len(qkv)):
        form = _chunked if chunk else _recurrent
        form(qkv[rows], gates.part(rows), state, out[rows])
    return out


def _key_heads(qkv: torch.Tensor, state: torch.Tensor) -> int:
    heads, key_dim, value_dim = state.shape
    return (qkv.shape[1] - heads * value_dim) // (2 * key_dim)


def _recurrent(qkv: torch.Tensor, gates: Gates, state: torch.Tensor, out: torch.Tensor) -> None:
    heads, key_dim, value_dim = state.shape
    delta.gated_delta[(heads, triton.cdiv(value_dim, 16))](
        qkv, *gates, state, out, len(qkv), qkv.stride(0), gates.a.stride(0),
        KEY_HEADS=_key_heads(qkv, state), HEADS=heads, KEY_DIM=key_dim, VALUE_DIM=value_dim,
        DK=next_power(key_dim), BV=16, num_warps=2,
    )  # fmt: skip


def _chunked(qkv: torch.Tensor, gates: Gates, state: torch.Tensor, out: torch.Tensor) -> None:
    size = _BLOCKS * CHUNK_STEP
    for begin in range(0, len(qkv), size):
        rows = slice(begin, begin + size)
        _some_blocks(qkv[rows], gates.part(rows), state, out[rows])


def _some_blocks(qkv: torch.Tensor, gates: Gates, state: torch.Tensor, out: torch.Tensor) -> None:
    heads, key_dim, value_dim = state.shape
    blocks, dk = len(qkv) // CHUNK_STEP, max(16, next_power(key_dim))
    rows = (heads, blocks, CHUNK_STEP)
    widths = (key_dim, key_dim, key_dim, value_dim, CHUNK_STEP)
    prepared = [qkv.new_empty(*rows, width) for width in widths]
    prepared.append(qkv.new_empty(heads, blocks))
    shape = {"HEADS": heads, "KEY_DIM": key_dim, "VALUE_DIM": value_dim, "STEP": CHUNK_STEP}
    delta_chunked.prepare[(heads, blocks)](
        qkv, *gates, *prepared, qkv.stride(0), gates.a.stride(0), **shape, DK=dk,
        KEY_HEADS=_key_heads(qkv, state), DV=max(16, next_power(value_dim)), num_warps=4,
        num_stages=1,
    )  # fmt: skip
    delta_chunked.advance[(heads, triton.cdiv(value_dim, 32))](
        *prepared, state, out, blocks, **shape, DK=dk, BV=32, num_warps=4, num_stages=1,
    )  # fmt: skip
