"""How much memory a model needs before any of it is taken. Pure arithmetic, in bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.composed import HEAD_ROWS

# Copies of [T, H] alive in a layer: residual, two normed inputs, mixer and expert results, the int8
# form of the inputs with its scales, and what the next layer's router is shown for a guess.
_HIDDEN_COPIES = 7
# Scores that an indexer holds at once (native/cpu/indexer/indexer.cpp), or those of one query.
_INDEX_SCORES = 4 << 20


def scratch_bytes(config: Any, specs: WeightSpecs, chunk: int) -> int:
    """Memory for the temporaries of a forward pass over `chunk` tokens.

    Every matrix of a layer gives its result, and at most one copy of it (rotated or convolved)
    lives beside it; each routed expert of a token gives a row of hidden_size and works on
    moe_intermediate_size values; a guess scores all experts once more. The head runs on HEAD_ROWS
    rows at a time. Sparse attention keeps the places of index_topk keys per token. A residual of
    hc_mult streams is held twice more in parts, as are queries beside their results (DeepSeek-V4).
    """
    widths: Counter[str] = Counter()
    for matrix in specs.matrices:
        if matrix.name.startswith("layers."):
            widths[matrix.name.split(".")[1]] += matrix.rows
    k: int = config.num_experts_per_tok
    per_token: int = (
        2 * max(widths.values())
        + (k + _HIDDEN_COPIES) * config.hidden_size
        + 2 * k * config.moe_intermediate_size
        + config.num_experts
        + 2 * k
    )
    fixed = (HEAD_ROWS + 1) * int(config.vocab_size)
    streams: int = getattr(config, "hc_mult", 0)
    if streams:
        per_token += 2 * streams * config.hidden_size + config.num_attention_heads * config.head_dim
    topk: int = getattr(config, "index_topk", 0)
    if topk:
        per_token += topk
        fixed += max(_INDEX_SCORES, int(config.max_position_embeddings))
    return 4 * (chunk * per_token + fixed)


def device_workspace_bytes(
    config: Any, specs: WeightSpecs, chunk: int, dequantized_bytes: int
) -> int:
    """Memory on a card for the temporaries of a forward pass over `chunk` tokens.

    The same arrays as on the host and a half-width copy of what is multiplied; routing sorts
    64-bit indices; dequantised matrices of a layer twice, that in use and that being made. An
    eighth of these is added for what torch's allocator cannot reuse. Dequantised experts lie in
    one workspace of `dequantized_bytes`, which is taken once.
    """
    k: int = config.num_experts_per_tok
    largest = max(m.rows * m.cols for m in specs.matrices if m.name.startswith("layers."))
    arrays = scratch_bytes(config, specs, chunk) + 6 * chunk * int(config.hidden_size)
    passing = arrays + 64 * chunk * k + 2 * 2 * largest
    return passing + passing // 8 + dequantized_bytes


def floor_slots(num_experts_per_tok: int, readers: int) -> int:
    """Fewest expert slots that keep the engine moving: one token's experts of a layer, and a read
    under way for each reader."""
    return num_experts_per_tok + readers
