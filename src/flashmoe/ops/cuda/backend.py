"""The CUDA backend: each op is a Triton kernel or two on torch tensors.

Shapes are those of flashmoe.ops.base; arrays are torch tensors of one device. Where a caller gives
the position of a token as a tensor instead of a number, the op can be captured in a CUDA graph.
Under Triton's interpreter the same code runs on the CPU, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import triton
from numpy.typing import DTypeLike, NDArray

from flashmoe.ops.composed import HEAD_ROWS, ComposedParts
from flashmoe.ops.cuda import choosing, delta_rule, latent, products
from flashmoe.ops.cuda.clock import DeviceClock
from flashmoe.ops.cuda.handles import DeviceMatrix, NewKeys, Normed, Rotated
from flashmoe.ops.cuda.kernels import attention as attending
from flashmoe.ops.cuda.kernels import dequantize, rows
from flashmoe.ops.cuda.memory import WeightArena
from flashmoe.ops.cuda.products import FEW_TOKENS, next_power
from flashmoe.ops.cuda.routed import RoutedProducts
from flashmoe.ops.parts import (
    HeadWeights,
    LatentAttentionWeights,
    LatentSpans,
    Routed,
    RouterWeights,
    SigmoidRouting,
)
from flashmoe.quant import Format

_SPLITS = 32
Input = torch.Tensor | Normed
Position = int | torch.Tensor


class CudaOps(ComposedParts):
    """flashmoe.ops.base.Ops on one device, without `experts` and `combine`: routed experts are
    computed where they lie (`routed`), not handed over one by one.

    Results of `rms_norm` and `head_norm_rope` wait as handles for the kernel that reads them, which
    the order of calls in ops/composed.py suits.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = DeviceClock(device)
        self.routed = RoutedProducts(device)
        self._new_keys: NewKeys | None = None  # stored with the attention that follows
        self._counters = torch.zeros(FEW_TOKENS, dtype=torch.int32, device=device)
        self._weights: WeightArena | None = None

    def begin_pass(self) -> None:
        self.clock.take()

    def begin_layer(self) -> None:
        """Nothing to give back: torch reuses what is no longer referred to."""

    def release_scratch(self) -> None:
        """Nothing to do: the memory of a pass was taken at load, and is planned for."""

    # Between host and device.

    def take_weights(self, nbytes: int) -> None:
        """Memory for all matrices and vectors from now on (WeightArena.room)."""
        self._weights = WeightArena(nbytes, self.device)

    def matrix(self, fmt: Format, rows: int, cols: int, data: NDArray[np.uint8]) -> DeviceMatrix:
        """A copy in device memory."""
        words = self._copied(torch.from_numpy(data.view(np.int32)))
        return DeviceMatrix(fmt, rows, cols, words)

    def vector(self, values: NDArray[np.float32]) -> torch.Tensor:
        """A copy in device memory."""
        return self._copied(torch.from_numpy(np.ascontiguousarray(values)))

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._weights is None:
            return tensor.to(self.device, copy=True)
        return self._weights.copy(tensor)

    def state(self, shape: tuple[int, ...], dtype: DTypeLike) -> torch.Tensor:
        """Zeros that a sequence keeps."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        return torch.zeros(shape, dtype=kind, device=self.device)

    def integers(self, values: NDArray[np.int32] | torch.Tensor) -> torch.Tensor:
        """Ids or positions on the device."""
        if isinstance(values, torch.Tensor):
            return values
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def concat(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    # Products.

    def embed(self, table: DeviceMatrix, ids: NDArray[np.int32] | torch.Tensor) -> torch.Tensor:
        on_device = self.integers(ids)
        out = self.empty(len(on_device), table.cols)
        fmt = table.format
        units = table.cols // products.UNIT_COLS[fmt.name]
        dequantize.embed[(len(on_device), triton.cdiv(units, 64))](
            table.data, on_device, out, COLS=table.cols, FORMAT=fmt.name, GROUP=fmt.group, UNITS=64
        )
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> Input:
        normed = Normed(x, weight, eps)
        return normed if len(x) <= FEW_TOKENS else self.values(normed)

    def values(self, x: Input) -> torch.Tensor:
        """x itself, normed by now."""
        return x.computed() if isinstance(x, Normed) else x

    def linear(self, x: Input, *matrices: DeviceMatrix) -> tuple[torch.Tensor, ...]:
        if len(x) <= FEW_TOKENS:
            return self._few_rows(x, matrices)
        values = self.values(x)
        outs = [self.empty(len(x), matrix.rows) for matrix in matrices]
        planes: dict[bool, products.Planes] = {}
        for matrix, out in zip(matrices, outs, strict=True):
            kind = bool(matrix.format.group)
            if kind not in planes:
                planes[kind] = products.split(values, matrix.format)
            self._many_rows(planes[kind], matrix, out, add=False)
        return tuple(outs)

    def _few_rows(self, x: Input, matrices: Sequence[DeviceMatrix]) -> tuple[torch.Tensor, ...]:
        """One launch per format; the results are views of one buffer."""
        outs: dict[int, torch.Tensor] = {}
        for fmt in dict.fromkeys(matrix.format for matrix in matrices):
            chosen = [i for i, matrix in enumerate(matrices) if matrix.format == fmt]
            group = [matrices[i] for i in chosen]
            joined = self.empty(len(x), 8 * sum(matrix.blocks for matrix in group))
            products.few_rows(x, group, joined)
            begin = 0
            for i in chosen:
                outs[i] = joined[:, begin : begin + matrices[i].rows]
                begin += 8 * matrices[i].blocks
        return tuple(outs[i] for i in range(len(matrices)))

    def _many_rows(
        self, x: products.Planes, matrix: DeviceMatrix, out: torch.Tensor, *, add: bool
    ) -> None:
        w = products.dequantize(products.Source.of(matrix), pairs=False)
        products.many_rows(x, w, matrix.rows, out, add=add)

    def linear_add(self, x: Input, matrix: DeviceMatrix, out: torch.Tensor) -> None:
        if len(x) <= FEW_TOKENS:
            products.few_rows(x, [matrix], out, add=True)
        else:
            self._many_rows(products.split(self.values(x), matrix.format), matrix, out, add=True)

    def ffn_add(
        self,
        x: Input,
        gate_up: DeviceMatrix,
        down: DeviceMatrix,
        out: torch.Tensor,
        scale: torch.Tensor | None,
    ) -> None:
        if len(x) <= FEW_TOKENS:
            hidden = self.routed.few_hidden_of(x, gate_up, down)
            products.few_rows(hidden, [down], out, add=True, row_scale=scale)
            return
        planes = products.split(self.values(x), gate_up.format)
        w = products.dequantize(products.Source.of(gate_up), pairs=True)
        hidden = self.empty(len(x), gate_up.rows // 2)
        tiles = products.Tiles.plain(len(x), self.device)
        products.hidden_rows(planes, w, hidden, tiles, topk=1, grouped=False, first=0)
        if scale is not None:
            hidden *= scale[:, None]
        self._many_rows(products.split(hidden, down.format), down, out, add=True)

    # Attention.

    def head_norm_rope(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        cos: torch.Tensor,
        sin: torch.Tensor,
        out: None = None,
    ) -> Rotated:
        assert out is None, "rotated heads are not stored"
        return Rotated(x, weight, eps, cos, sin)

    def kv_store(
        self,
        k: Rotated,
        v: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        start: Position,
        window: int = 0,
    ) -> None:
        heads, context, dim = k_cache.shape
        assert k.x.stride(1) == v.stride(1) == dim
        if len(k) == 1:
            self._new_keys = NewKeys(k, v, k_cache)
            return
        rows.kv_store[(len(k.x),)](
            k.x, v, *k.turn, k_cache, v_cache, self.position(start), k.eps,
            k.x.stride(0), v.stride(0), context, heads,
            **k.constants, ROWS=next_power(heads),
        )  # fmt: skip

    def attention(
        self,
        q: Rotated,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        start: Position,
        scale: float,
        window: int = 0,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        attend = self._attend_few if len(q.x) <= FEW_TOKENS else self._attend_many
        return attend(q, k_cache, v_cache, self.position(start), scale, window, sinks)

    def _attend_few(
        self, q: Rotated, k: torch.Tensor, v: torch.Tensor, start: torch.Tensor, scale: float,
        window: int, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        tokens, heads, dim = q.x.shape
        key_heads, context, _ = k.shape
        group = heads // key_heads
        parts = self.empty(tokens, heads, _SPLITS, dim)
        peaks, sums = self.empty(tokens, heads, _SPLITS), self.empty(tokens, heads, _SPLITS)
        new = self._new_keys
        assert new is None or new.k_cache is k
        keys = q if new is None else new.k
        attending.attend_split[(key_heads, _SPLITS, tokens)](
            q.x, *q.turn, k, v, start, parts, peaks, sums, q.eps, scale,
            q.x.stride(0), q.x.stride(1), context,
            keys.x, q.x if new is None else new.v, keys.turn[0], keys.eps,
            STORE=new is not None, HEADS=heads, GROUP=group,
            ROWS=max(16, next_power(group)), SPLITS=_SPLITS, BN=32, WINDOW=window,
            **q.constants, num_warps=4,
        )  # fmt: skip
        self._new_keys = None
        out = self.empty(tokens, heads, dim)
        attending.attend_join[(heads, tokens)](
            parts, peaks, sums, sums if sinks is None else sinks, out, HEADS=heads, D=dim,
            SPLITS=_SPLITS, BLOCK=next_power(dim), SINKS=sinks is not None, num_warps=4,
        )  # fmt: skip
        return out

    def _attend_many(
        self, q: Rotated, k: torch.Tensor, v: torch.Tensor, start: torch.Tensor, scale: float,
        window: int, sinks: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        tokens, heads, dim = q.x.shape
        turned = torch.empty((tokens, heads, dim), dtype=k.dtype, device=self.device)
        rows.rotate[(triton.cdiv(heads, 4), tokens)](
            q.x, *q.turn, turned, q.eps, q.x.stride(0), q.x.stride(1), heads,
            **q.constants, ROWS=4,
        )  # fmt: skip
        out = self.empty(tokens, heads, dim)
        wide = k.dtype == torch.float32 or dim > 128
        block = 64 if wide else 128
        attending.attend_block[(triton.cdiv(tokens, block), heads)](
            turned, k, v, start, out if sinks is None else sinks, out, scale, tokens, k.shape[1],
            HEADS=heads, WINDOW=window, SINKS=sinks is not None,
            GROUP=heads // k.shape[0], D=dim, BM=block, BN=32 if wide else 64,
            BLOCK=next_power(dim), num_warps=4 if wide else 8, num_stages=2,
        )  # fmt: skip
        return out

    def position(self, start: Position) -> torch.Tensor:
        """On the device, int32 [1]."""
        if isinstance(start, torch.Tensor):
            return start
        return torch.full((1,), start, dtype=torch.int32, device=self.device)

    def add_latent_attention(
        self,
        h: Any,
        weights: LatentAttentionWeights,
        rope: tuple[Any, Any],
        spans: LatentSpans,
    ) -> None:
        self.clock.phase = "attention"
        latent.add_latent_attention(self, h, weights, rope, spans)

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x)

    def sigmoid_gate(self, x: torch.Tensor, gate: torch.Tensor) -> None:
        tokens, heads, dim = x.shape
        rows.sigmoid_gate[(heads, tokens)](
            x, gate, gate.stride(0), gate.stride(1), heads, D=dim, BLOCK=next_power(dim)
        )

    def add_bias(self, x: torch.Tensor, bias: torch.Tensor) -> None:
        x += bias

    # The delta rule.

    def causal_conv_silu(
        self, u: torch.Tensor, weight: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        tokens, channels = u.shape
        width, pieces = weight.shape[1], triton.cdiv(channels, 256)
        out = self.empty(tokens, channels)
        rows.causal_conv_silu[(tokens, pieces)](
            u, weight, state, out, u.stride(0), channels, WIDTH=width, BLOCK=256
        )
        rows.conv_state[(pieces,)](u, state, u.stride(0), tokens, channels, WIDTH=width, BLOCK=256)
        return out

    def gated_delta(
        self,
        qkv: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_log: torch.Tensor,
        dt_bias: torch.Tensor,
        state: torch.Tensor,
        position: Position,
    ) -> torch.Tensor:
        gates = delta_rule.Gates(a, b, a_log, dt_bias)
        return delta_rule.gated_delta(qkv, gates, state, position)

    def gated_rms_norm(
        self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> None:
        cols = x.shape[1]
        rows.gated_rms_norm[(len(x),)](
            x, gate.contiguous(), weight, eps, COLS=cols, BLOCK=next_power(cols)
        )

    # Routing.

    def norm_and_route(
        self, h: Any, weights: RouterWeights, ahead: RouterWeights | None = None
    ) -> Routed:
        """A guess of what the next layer will want is made beside what follows (routed.ahead)."""
        ops: Any = super()
        routed: Routed = ops.norm_and_route(h, weights)
        if ahead is None:
            return routed
        with self.routed.aside():
            norm: Any = ahead.norm
            seen: Any = self.rms_norm(h, norm, ahead.eps)
            k, how = ahead.num_experts_per_tok, (ahead.renormalize, ahead.bias, ahead.sigmoid)
            gate: Any = ahead.gate
            guess: Any = self.route(seen, gate, k, *cast(Any, how))[0]
        return routed._replace(ids_ahead=guess)

    def route(
        self,
        x: Input,
        gate: DeviceMatrix,
        k: int,
        renormalize: bool,
        bias: torch.Tensor | None = None,
        sigmoid: SigmoidRouting | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if bias is not None or sigmoid is not None:
            return choosing.route(self, x, gate, k, renormalize, bias, sigmoid)
        return choosing.route_softmax(self, x, gate, k, renormalize)

    def count(self, needed: int) -> torch.Tensor:
        """Counters, all zero between kernels."""
        assert needed <= len(self._counters)
        return self._counters

    # The head.

    def head(self, h: Any, weights: HeadWeights, out: NDArray[np.float32]) -> None:
        """Of h [T, H] on the device, into memory of the host, once everything before has run."""
        self.clock.phase = "head"
        for begin in range(0, len(h), HEAD_ROWS):
            rows = slice(begin, begin + HEAD_ROWS)
            out[rows] = self.device_logits(h[rows], weights).cpu().numpy()

    def device_logits(self, h: torch.Tensor, weights: HeadWeights) -> torch.Tensor:
        """h [T, H], at most 16 rows -> [T, vocab_size] on the device."""
        norm: Any = weights.norm
        return self.linear(self.rms_norm(h, norm, weights.eps), weights.lm_head)[0]

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)
