"""Routers that are more than a softmax over logits: as kernels of their own after the product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flashmoe.ops.cuda.handles import DeviceMatrix, Normed
from flashmoe.ops.cuda.kernels import choosing as kernels
from flashmoe.ops.cuda.kernels import routing
from flashmoe.ops.cuda.products import next_power
from flashmoe.ops.parts import SigmoidRouting

if TYPE_CHECKING:
    from flashmoe.ops.cuda.backend import CudaOps


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
