"""The choice of experts from logits, where it is more than the largest of a softmax."""

import triton
import triton.language as tl


@triton.jit
def sigmoid_topk(
    logits_ptr, correction_ptr, ids_ptr, weights_ptr, scale, stride,
    GROUPS: tl.constexpr, GROUP_SIZE: tl.constexpr, CHOSEN: tl.constexpr, TOPK: tl.constexpr,
    RENORMALIZE: tl.constexpr, GROUP_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Group-limited sigmoid routing (ops.parts.SigmoidRouting) of logits [T, E]; grid (T).

    The lower group, and the lower id, first where equal. stride: from one row to the next.
    """
    t = tl.program_id(0).to(tl.int64)
    g, i = tl.arange(0, GROUP_BLOCK), tl.arange(0, BLOCK)
    known = (g < GROUPS)[:, None] & (i < GROUP_SIZE)[None, :]
    id = g[:, None] * GROUP_SIZE + i[None, :]
    logits = tl.load(logits_ptr + t * stride + id, mask=known, other=0.0)
    sigmoids = 1.0 / (1.0 + tl.exp(-logits))
    scores = sigmoids + tl.load(correction_ptr + id, mask=known, other=0.0)
    scores = tl.where(known, scores, -float("inf"))
    if CHOSEN < GROUPS:
        best = tl.max(scores, 1)
        first = tl.argmax(scores, 1, tie_break_left=True)
        others = tl.where(i[None, :] == first[:, None], -float("inf"), scores)
        if GROUP_SIZE > 1:
            best += tl.max(others, 1)
        allowed = g < 0
        for _ in tl.static_range(CHOSEN):
            group = tl.argmax(best, 0, tie_break_left=True)
            allowed = allowed | (g == group)
            best = tl.where(g == group, -float("inf"), best)
        scores = tl.where(allowed[:, None], scores, -float("inf"))
    left = tl.reshape(scores, [GROUP_BLOCK * BLOCK])
    chances = tl.reshape(sigmoids, [GROUP_BLOCK * BLOCK])
    at, k = tl.arange(0, GROUP_BLOCK * BLOCK), tl.arange(0, SLOTS)
    ids = tl.zeros([SLOTS], tl.int32)
    weights = tl.zeros([SLOTS], tl.float32)
    for rank in tl.static_range(TOPK):
        best_at = tl.argmax(left, 0, tie_break_left=True)
        # Never past the table of experts, whatever NaN does to the comparison.
        expert = tl.minimum(
            best_at // BLOCK * GROUP_SIZE + best_at % BLOCK, GROUPS * GROUP_SIZE - 1
        )
        ids = tl.where(k == rank, expert, ids)
        chance = tl.sum(tl.where(at == best_at, chances, 0.0), 0)
        weights = tl.where(k == rank, chance, weights)
        left = tl.where(at == best_at, -float("inf"), left)
    if RENORMALIZE:
        weights /= tl.sum(weights, 0) + 1e-20
    tl.store(ids_ptr + t * TOPK + k, ids, mask=k < TOPK)
    tl.store(weights_ptr + t * TOPK + k, weights * scale, mask=k < TOPK)
