"""Parts that every backend composes of primitives: they stand in few layers, or one native call
would save nothing beside the work of the models that have them."""

from __future__ import annotations

from flashmoe.ops.base import Floats, Primitives
from flashmoe.ops.parts import LATENT_EPS, DenseMlpWeights, LatentAttentionWeights, LatentSpans


class PlainParts:
    """Some layer parts of flashmoe.ops.base.Ops, for a class that has its primitives."""

    def add_latent_attention(
        self: Primitives,
        h: Floats,
        weights: LatentAttentionWeights,
        rope: tuple[Floats, Floats],
        spans: LatentSpans,
    ) -> None:
        self.begin_layer()
        self.clock.phase = "attention"
        q, latent, k_rope = latent_heads(self, h, weights, rope)
        outs = []
        for begin, end, start, cache in spans:
            self.kv_store(latent[begin:end], k_rope[begin:end], cache.latent, cache.rope, start)
            rows = cache.rows, cache.latent
            outs.append(self.attention(q[begin:end], *rows, start, weights.scale))
        add_latent_values(self, h, weights, self.concat(outs))

    def add_dense_mlp(self: Primitives, h: Floats, weights: DenseMlpWeights) -> None:
        self.begin_layer()
        self.clock.phase = "shared"
        x = self.rms_norm(h, weights.norm, weights.eps)
        self.ffn_add(x, weights.gate_up, weights.down, h, None)


def latent_heads(
    ops: Primitives, h: Floats, w: LatentAttentionWeights, rope: tuple[Floats, Floats]
) -> tuple[Floats, Floats, Floats]:
    """h [T, H] -> queries [T, Hq, R + P] in the latent space, latent vectors [T, 1, R] and rotated
    keys [T, 1, P]."""
    tokens = len(h)
    latent, k_rope, q_nope, q_rope = _latent_projections(ops, h, w)
    latent = ops.rms_norm(latent, w.kv_norm, LATENT_EPS)[:, None]
    k_rope = ops.head_norm_rope(k_rope[:, None], None, LATENT_EPS, *rope)
    q = ops.empty(tokens, w.num_heads, w.rank + w.rope_dim)
    ops.head_linear(q_nope.reshape(tokens, w.num_heads, -1), w.k_up, q[..., : w.rank])
    turned = q_rope.reshape(tokens, w.num_heads, -1)
    ops.head_norm_rope(turned, None, LATENT_EPS, *rope, out=q[..., w.rank :])
    return q, latent, k_rope


def add_latent_values(ops: Primitives, h: Floats, w: LatentAttentionWeights, out: Floats) -> None:
    """h [T, H] += o_proj of attention's result [T, Hq, R], brought out of the latent space."""
    values = ops.empty(len(h), w.num_heads, w.v_up.rows // w.num_heads)
    ops.head_linear(out, w.v_up, values)
    ops.linear_add(values.reshape(len(h), -1), w.o_proj, h)


def _latent_projections(
    ops: Primitives, h: Floats, w: LatentAttentionWeights
) -> tuple[Floats, Floats, Floats, Floats]:
    """h [T, H] -> latent [T, R], k_rope [T, P], q_nope [T, Hq * N], q_rope [T, Hq * P]."""
    x = ops.rms_norm(h, w.norm, w.eps)
    if w.q_a_proj is None or w.q_a_norm is None:
        latent, k_rope, q_nope, q_rope = ops.linear(x, w.kv_latent, w.k_rope, w.q_nope, w.q_rope)
        return latent, k_rope, q_nope, q_rope
    latent, k_rope, low = ops.linear(x, w.kv_latent, w.k_rope, w.q_a_proj)
    low = ops.rms_norm(low, w.q_a_norm, LATENT_EPS)
    q_nope, q_rope = ops.linear(low, w.q_nope, w.q_rope)
    return latent, k_rope, q_nope, q_rope
