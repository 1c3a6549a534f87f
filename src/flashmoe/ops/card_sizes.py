"""What the CUDA backend takes of a card beside weights and slots. Known without torch."""

from __future__ import annotations

from typing import Final

from flashmoe.ops.base import ExpertShape

# What a process takes of a card beside torch's tensors: context, kernels, captured graphs.
# Measured on an H200 (docs/cuda.md); a test holds the whole process to --vram.
CONTEXT_BYTES: Final = 896 << 20
# Tensors of the captured steps of one sequence, which torch keeps apart in blocks of 2 and 20 MB.
CAPTURED_BYTES: Final = 96 << 20
# Resident tensors lie in one arena, each from such a boundary.
WEIGHT_ALIGN: Final = 256
# Up to here every token reads the weights anew (out of the L2 cache); beyond, tensor cores pay.
FEW_TOKENS: Final = 16
# Dequantised weights that are alive at a time, in bytes: experts are taken in pieces of this size.
_PIECE_BYTES: Final = 512 << 20


def weight_bytes(nbytes: int, tensors: int) -> int:
    """Room for so many tensors of `nbytes` altogether."""
    return nbytes + tensors * WEIGHT_ALIGN


def workspace_bytes(shape: ExpertShape, num_experts: int) -> int:
    """Size of ExpertArena.workspace: a piece, at least one expert and at most a whole layer."""
    one = 4 * -(-shape.intermediate_size // 8) * 8 * -(-shape.hidden_size // 8) * 8
    return min(max(_PIECE_BYTES, one), num_experts * one)


def floor_device_slots(num_experts: int, num_experts_per_tok: int) -> int:
    """Slots from which the card can plan by itself: two layers, or the experts of a few tokens."""
    return max(2 * num_experts, FEW_TOKENS * num_experts_per_tok)
