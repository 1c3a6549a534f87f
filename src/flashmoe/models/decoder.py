"""The pre-norm decoder that families assemble: token mixer, then routed experts, in each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.layers.attention import AttentionWeights
from flashmoe.layers.moe import RoutedExperts, SparseMoe
from flashmoe.layers.rope import RotaryTable
from flashmoe.layers.state import Batch, DeltaState, KvCache, SequenceState, StateMemory, Step
from flashmoe.ops.base import Floats, Matrix, Ops

# Rows that go through the head at a time: the logits of a whole chunk would be by far the largest
# temporary (512 tokens of 248320 float32 are 0.5 GB).
HEAD_ROWS = 16


@dataclass(frozen=True)
class Weights:
    """The resident weights of a model by pack name, as handles and arrays of one backend."""

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Floats]


def attention_weights(weights: Weights, prefix: str) -> AttentionWeights:
    """The weights of an attention layer whose pack names begin with prefix."""
    m, v = weights.matrices, weights.vectors
    return AttentionWeights(
        q_proj=m[prefix + "q_proj"],
        k_proj=m[prefix + "k_proj"],
        v_proj=m[prefix + "v_proj"],
        o_proj=m[prefix + "o_proj"],
        q_norm=v[prefix + "q_norm"],
        k_norm=v[prefix + "k_norm"],
    )


class Mixer(Protocol):
    """What mixes tokens: attention or a recurrence."""

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> KvCache | DeltaState:
        """The state of one empty sequence."""

    def add_to(self, h: Floats, x: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += mixer of the normed input x [T, H]."""


@dataclass(frozen=True)
class DecoderLayer:
    """h += mixer(norm(h)); h += moe(norm(h))."""

    input_layernorm: Floats
    mixer: Mixer
    post_attention_layernorm: Floats
    moe: SparseMoe


@dataclass(frozen=True)
class Decoder:
    """Embedding, layers, final norm and head of a model; holds no state of any sequence."""

    embed_tokens: Matrix
    layers: tuple[DecoderLayer, ...]
    norm: Floats
    lm_head: Matrix
    rope: RotaryTable
    eps: float

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> SequenceState:
        """An empty sequence of up to context_length tokens. memory: Ops.state of the backend."""
        states = [layer.mixer.new_state(context_length, kv_dtype, memory) for layer in self.layers]
        return SequenceState(context_length, states)

    def forward(self, batch: Batch, experts: RoutedExperts, ops: Ops) -> Floats:
        """Run the tokens of the batch through all layers -> [T, H], before the final norm."""
        ops.clock.phase = "other"
        h = ops.embed(self.embed_tokens, batch.ids)
        step = Step(batch.segments, self.rope.at(batch.positions(), ops))
        for layer in self.layers:
            ops.begin_layer()
            ops.clock.phase = "other"
            x = ops.rms_norm(h, layer.input_layernorm, self.eps)
            layer.mixer.add_to(h, x, step, ops)
            ops.clock.phase = "other"
            x = ops.rms_norm(h, layer.post_attention_layernorm, self.eps)
            layer.moe.add_to(h, x, experts, ops)
        batch.advance()
        return h

    def logits(self, h: Floats, ops: Ops) -> Floats:
        """h [T, H] from `forward` -> float32 [T, vocab_size]."""
        ops.clock.phase = "head"
        logits = np.empty((len(h), self.lm_head.rows), dtype=np.float32)
        for begin in range(0, len(h), HEAD_ROWS):
            ops.begin_layer()
            rows = slice(begin, begin + HEAD_ROWS)
            logits[rows] = ops.to_host(self.device_logits(h[rows], ops))
        return logits

    def device_logits(self, h: Floats, ops: Ops) -> Floats:
        """h [T, H], a few rows, from `forward` -> scratch [T, vocab_size] of the backend."""
        (logits,) = ops.linear(ops.rms_norm(h, self.norm, self.eps), self.lm_head)
        return logits


def assemble(
    config: Any, weights: Weights, layers: tuple[DecoderLayer, ...], rope: RotaryTable
) -> Decoder:
    """A decoder of these layers; config: any family's, for tie_word_embeddings and rms_norm_eps."""
    m = weights.matrices
    return Decoder(
        embed_tokens=m["embed_tokens"],
        layers=layers,
        norm=weights.vectors["norm"],
        lm_head=m["embed_tokens" if config.tie_word_embeddings else "lm_head"],
        rope=rope,
        eps=config.rms_norm_eps,
    )
