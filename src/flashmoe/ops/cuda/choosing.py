"""Routers that are more than a softmax over logits: as kernels of their own after the product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from flashmoe.ops.cuda import products
from flashmoe.ops.cuda.handles import DeviceMatrix, Normed
from flashmoe.ops.cuda.kernels import choosing as kernels
from flashmoe.ops.cuda.kernels import routing
from flashmoe.ops.cuda.products import FEW_TOKENS, next_power
from flashmoe.ops.parts import SigmoidRouting
from flashmoe.quant import Format

if TYPE_CHECKING:
    from flashmoe.ops.cuda.backend import CudaOps

# Inputs of a router are taken as floats.
_FLOATS = Format("bf16")


def route_softmax(
    ops: CudaOps, x: torch.Tensor | Normed, gate: DeviceMatrix, k: int, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """ops.base.Primitives.route with a plain softmax: one kernel for a few tokens."""
    ids = torch.empty((len(x), k), dtype=torch.int32, device=ops.device)
    weights = ops.empty(len(x), k)
    choice = {
        "TOPK": k,
        "RENORMALIZE": renormalize,
        "BLOCK": next_power(gate.rows),
        "SLOTS": next_power(k),
    }
    tile = products.unit_tile(gate.format, gate.cols)
    whole = tile["UNITS"] * products.UNIT_COLS[gate.format.name] >= gate.cols
    if len(x) <= FEW_TOKENS and gate.cols % 8 == 0 and whole:
        _route_few(ops, x, gate, ids, weights, {**choice, **tile})
    else:
        # Kept, as in _route_few: what follows reads x after the residual has changed.
        logits = ops.linear(ops.values(x), gate)[0].contiguous()
        routing.softmax_topk[(len(x),)](logits, ids, weights, gate.rows, **choice, num_warps=4)
    return ids, weights


def _route_few(
    ops: CudaOps, x: torch.Tensor | Normed, gate: DeviceMatrix, ids: torch.Tensor,
    weights: torch.Tensor, constants: dict[str, Any],
) -> None:  # fmt: skip
    pending = isinstance(x, Normed) and x.value is None
    values, norm, eps, _ = products.input_of(x, _FLOATS)
    logits, kept, codes = ops.empty(len(x), gate.rows), values, ids
    if pending:
        # What follows reads x after the residual has changed.
        kept = torch.empty_like(values)
        codes = products.empty_codes(len(values), gate.cols, ops.device)
    routing.route[(gate.blocks, len(values))](
        values, norm, gate.data, logits, kept, codes, ops.count(len(values)), ids, weights, eps,
        COLS=gate.cols, EXPERTS=gate.rows, FORMAT=gate.format.name, GROUP=gate.format.group,
        NORM=pending, SHARE=next_power(triton.cdiv(gate.cols, 8 * gate.blocks)),
        EMULATED=ops.device.type == "cpu", **constants,
    )  # fmt: skip
    if isinstance(x, Normed) and pending:
        x.value, x.codes = kept, codes


def route(
    ops: CudaOps,
    x: torch.Tensor | Normed,
    gate: DeviceMatrix,
    k: int,
    renormalize: bool,
    bias: torch.Tensor | None,
    sigmoid: SigmoidRouting | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ops.base.Primitives.route with a bias of the logits or sigmoids in groups.

    The norm is computed at once: what follows reads x after the residual has changed."""
    values = x.computed() if isinstance(x, Normed) else x
    logits = ops.linear(values, gate)[0]
    if bias is not None:
        logits = logits + bias
    ids = torch.empty((len(values), k), dtype=torch.int32, device=ops.device)
    weights = ops.empty(len(values), k)
    if sigmoid is None:
        routing.softmax_topk[(len(values),)](
            logits.contiguous(), ids, weights, gate.rows, TOPK=k, RENORMALIZE=renormalize,
            BLOCK=next_power(gate.rows), SLOTS=next_power(k), num_warps=4,
        )  # fmt: skip
    else:
        _sigmoids(logits, ids, weights, renormalize, sigmoid)
    return ids, weights


def _sigmoids(
    logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, renormalize: bool,
    how: SigmoidRouting,
) -> None:  # fmt: skip
    size, k = logits.shape[1] // how.groups, ids.shape[1]
    kernels.sigmoid_topk[(len(ids),)](
        logits, how.correction, ids, weights, how.scale, logits.stride(0),
        GROUPS=how.groups, GROUP_SIZE=size, CHOSEN=how.chosen_groups, TOPK=k,
        RENORMALIZE=renormalize, GROUP_BLOCK=next_power(how.groups), BLOCK=next_power(size),
        SLOTS=next_power(k), num_warps=1,
    )  # fmt: skip
