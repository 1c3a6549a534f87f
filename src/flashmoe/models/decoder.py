"""The pre-norm decoder that families assemble: token mixer, then routed experts, in each layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.errors import UsageError
from flashmoe.layers.choice import Chooser, InMemory
from flashmoe.layers.embedding import Embedding, ResidentEmbedding
from flashmoe.layers.hyper import HeadStreams
from flashmoe.layers.moe import DenseMlp, RoutedExperts, Routes, SparseMoe
from flashmoe.layers.sandwich import SandwichMoe
from flashmoe.layers.state import Batch, LayerState, Rotary, SequenceState, StateMemory, Step
from flashmoe.layers.streamed_moe import StreamedMoe
from flashmoe.layers.traced import OnRouted, TracedMoe, TracedSandwichMoe
from flashmoe.ops.base import Floats, Ints, Matrix, Ops
from flashmoe.ops.parts import (
    AttentionBiases,
    AttentionWeights,
    HeadWeights,
    RouterWeights,
    SigmoidRouting,
)
from flashmoe.routing import RoutingOptions

# Called as (layers done, layers) after each layer of a pass.
OnLayer = Callable[[int, int], None]


@dataclass(frozen=True)
class Weights:
    """The resident weights of a model by pack name, as handles and arrays of one backend.

    embedding: the input embedding where it is not among the matrices.
    """

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Floats]
    embedding: Embedding | None = None


def attention_weights(
    weights: Weights, layer: int, head_dim: int, eps: float, gated: bool = False
) -> AttentionWeights:
    """The weights of an attention layer under their usual names: norms and biases if it has any."""
    m, v, p = weights.matrices, weights.vectors, f"layers.{layer}."
    biases = None
    if p + "self_attn.q_proj.bias" in v:
        q, k, v_bias = (v[f"{p}self_attn.{part}_proj.bias"] for part in "qkv")
        biases = AttentionBiases(q, k, v_bias, v.get(p + "self_attn.o_proj.bias"))
    return AttentionWeights(
        norm=v[p + "input_layernorm"],
        q_proj=m[p + "self_attn.q_proj"],
        k_proj=m[p + "self_attn.k_proj"],
        v_proj=m[p + "self_attn.v_proj"],
        o_proj=m[p + "self_attn.o_proj"],
        q_norm=v.get(p + "self_attn.q_norm"),
        k_norm=v.get(p + "self_attn.k_norm"),
        head_dim=head_dim,
        eps=eps,
        gated=gated,
        biases=biases,
    )


def router_weights(
    n: int, config: Any, weights: Weights, sigmoid: SigmoidRouting | None = None
) -> RouterWeights:
    """The router of layer n under its usual names; config: any family's, for num_experts_per_tok,
    norm_topk_prob and rms_norm_eps."""
    p = f"layers.{n}."
    return RouterWeights(
        norm=weights.vectors[p + "post_attention_layernorm"],
        gate=weights.matrices[p + "mlp.gate"],
        num_experts_per_tok=config.num_experts_per_tok,
        renormalize=config.norm_topk_prob,
        eps=config.rms_norm_eps,
        sigmoid=sigmoid,
    )


def kv_state_bytes(config: Any, context_length: int, kv_itemsize: int) -> int:
    """Bytes of one sequence's state at the full context where all layers keep keys and values;
    config: any family's with grouped-query attention."""
    per_position: int = 2 * config.num_key_value_heads * config.head_dim * kv_itemsize
    layers: int = config.num_hidden_layers
    return layers * context_length * per_position


class Mixer(Protocol):
    """What mixes tokens: attention or a recurrence."""

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> LayerState:
        """The state of one empty sequence."""

    def add_to(self, h: Floats, step: Step, ops: Ops) -> None:
        """h [T, H] += mixer of norm(h)."""


class Mlp(Protocol):
    """What works on each token by itself: dense, or with routed experts (then also a Routes)."""

    def add_to(
        self,
        h: Floats,
        experts: RoutedExperts,
        ops: Ops,
        following: Routes | None = None,
        ids: Ints | None = None,
    ) -> None:
        """h [T, H] += mlp of norm(h). following: the next layer's experts, if it has any; ids [T]:
        the tokens."""


@dataclass(frozen=True)
class DecoderLayer:
    """h += mixer(norm(h)); h += mlp(norm(h))."""

    mixer: Mixer
    mlp: Mlp


@dataclass(frozen=True)
class Decoder:
    """Embedding, layers and head of a model; holds no state of any sequence.

    more_ropes: tables of layers that do not rotate as `rope` says (Step.ropes, from 1 on).
    embedding_scale: what embeddings are multiplied by. streams: of a model whose residual has
    several: hidden states between layers are [T, S * H] then.
    """

    embed_tokens: Embedding
    layers: tuple[DecoderLayer, ...]
    head: HeadWeights
    rope: Rotary
    more_ropes: tuple[Rotary, ...] = ()
    embedding_scale: float = 1.0
    streams: HeadStreams | None = None

    @property
    def width(self) -> int:
        """Of a hidden state between layers."""
        return len(self.head.norm) * (1 if self.streams is None else len(self.streams.maps))

    def with_rules(self, options: RoutingOptions, in_memory: InMemory) -> Decoder:
        """The same decoder, its layers of experts under lossy rules. Raises UsageError where the
        rules name another number of layers, or for a family that has none."""
        moes = [layer.mlp for layer in self.layers if isinstance(layer.mlp, SparseMoe)]
        if any(isinstance(layer.mlp, SandwichMoe | StreamedMoe) for layer in self.layers):
            raise UsageError("this family's routing has no such rules", where="routing")
        if options.per_layer and len(options.per_layer) != len(moes):
            raise UsageError(
                "another number of layers",
                where="routing: per_layer",
                expected=f"{len(moes)} counts",
                got=len(options.per_layer),
            )
        numbers = {id(moe): n for n, moe in enumerate(moes)}

        def ruled(mlp: Mlp) -> Mlp:
            if not isinstance(mlp, SparseMoe):
                return mlp
            number = numbers[id(mlp)]
            chooser = Chooser(options, mlp.layer, number, mlp.router, in_memory)
            return dataclasses.replace(mlp, chooser=chooser)

        layers = [dataclasses.replace(layer, mlp=ruled(layer.mlp)) for layer in self.layers]
        return dataclasses.replace(self, layers=tuple(layers))

    def with_trace(self, trace: OnRouted) -> Decoder:
        """The same decoder; `trace` hears what each router says. Raises UsageError for a family
        whose layers of experts cannot tell."""

        def traced(mlp: Mlp) -> Mlp:
            if isinstance(mlp, DenseMlp):
                return mlp
            if type(mlp) is SparseMoe:
                return TracedMoe(**vars(mlp), trace=trace)
            if type(mlp) is SandwichMoe:
                return TracedSandwichMoe(**vars(mlp), trace=trace)
            raise UsageError("this family's routing cannot be recorded", where="trace")

        layers = [dataclasses.replace(layer, mlp=traced(layer.mlp)) for layer in self.layers]
        return dataclasses.replace(self, layers=tuple(layers))

    def routers(self) -> dict[int, RouterWeights]:
        """The router of each layer with routed experts, by the layer's index."""
        moes = (layer.mlp for layer in self.layers)
        return {m.layer: m.router for m in moes if isinstance(m, SparseMoe | SandwichMoe)}

    def new_state(
        self, context_length: int, kv_dtype: DTypeLike, memory: StateMemory
    ) -> SequenceState:
        """An empty sequence of up to context_length tokens. memory: Ops.state of the backend."""
        states = [layer.mixer.new_state(context_length, kv_dtype, memory) for layer in self.layers]
        return SequenceState(context_length, states)

    def embed(self, ids: Ints, ops: Ops) -> Floats:
        """ids int32 [T] -> the first hidden states [T, width]; they hold until the next call."""
        h = self.embed_tokens.rows(ids, ops)
        if self.embedding_scale != 1.0:
            h *= np.float32(self.embedding_scale)
        return h if self.streams is None else self.streams.spread(h)

    def step(self, batch: Batch) -> Step:
        """What the layers of a pass over the batch share."""
        return Step.of(batch, self.rope, *self.more_ropes)

    def forward(
        self, batch: Batch, experts: RoutedExperts, ops: Ops, on_layer: OnLayer | None = None
    ) -> Floats:
        """Run the tokens of the batch through all layers -> [T, width], before the final norm.

        The result holds until the next `forward`.
        """
        ops.clock.phase = "other"
        h, step = self.embed(batch.ids, ops), self.step(batch)
        for number, (layer, following) in enumerate(self._with_following, 1):
            layer.mixer.add_to(h, step, ops)
            layer.mlp.add_to(h, experts, ops, following, batch.ids)
            if on_layer is not None:
                on_layer(number, len(self.layers))
        batch.advance()
        return h

    def logits(self, h: Floats, ops: Ops, out: Floats | None = None) -> Floats:
        """h [T, width] from `forward` -> float32 [T, vocab_size], in `out` if it is given."""
        if out is None:
            out = np.empty((len(h), self.head.lm_head.rows), dtype=np.float32)
        ops.head(h if self.streams is None else self.streams.collapse(h), self.head, out)
        return out

    @functools.cached_property
    def _with_following(self) -> tuple[tuple[DecoderLayer, Routes | None], ...]:
        """Each layer with the experts of the one after it, if that has any."""
        mlps = [layer.mlp for layer in self.layers[1:]]
        routed = SparseMoe | SandwichMoe | StreamedMoe
        following = [mlp if isinstance(mlp, routed) else None for mlp in mlps]
        return tuple(zip(self.layers, [*following, None], strict=True))


def assemble(
    config: Any,
    weights: Weights,
    layers: tuple[DecoderLayer, ...],
    rope: Rotary,
    *,
    more_ropes: tuple[Rotary, ...] = (),
    embedding_scale: float = 1.0,
    softcap: float = 0.0,
    streams: HeadStreams | None = None,
) -> Decoder:
    """A decoder of these layers; config: any family's, for tie_word_embeddings and rms_norm_eps.

    The rest: see Decoder and HeadWeights.
    """
    m = weights.matrices
    head = HeadWeights(
        norm=weights.vectors["norm"],
        lm_head=m["embed_tokens" if config.tie_word_embeddings else "lm_head"],
        eps=config.rms_norm_eps,
        softcap=softcap,
    )
    embedding = weights.embedding or ResidentEmbedding(m["embed_tokens"])
    return Decoder(embedding, layers, head, rope, more_ropes, embedding_scale, streams)
