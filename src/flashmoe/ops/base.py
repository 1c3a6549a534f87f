"""The door to kernels: what a backend offers to layers. Backends: cpu (native), cuda (Triton),
reference (NumPy).

Layers call the parts of `Ops`, each a whole step from residual to residual; `ops/composed.py` says
what a part computes in terms of `Primitives`. Layers that one family has, for which no backend has
anything faster than its primitives, are composed of those in layers/ itself.

Shapes: T tokens, H hidden_size, D head_dim, E experts, K experts per token. Arrays are float32
unless said otherwise. Returned arrays are scratch: they hold until the next `begin_layer`.

Every op is row-wise exact: a token's result is bit-identical whatever other tokens are in the call
and however many threads run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flashmoe.ops.clock import PhaseClock
from flashmoe.ops.parts import (
    Array,
    AttentionWeights,
    DenseMlpWeights,
    Floats,
    GatedDeltaWeights,
    HeadWeights,
    Ints,
    KvSpans,
    LatentAttentionWeights,
    LatentSpans,
    Matrix,
    RecurrentSpans,
    Routed,
    RouterWeights,
    SharedExpertWeights,
    SigmoidRouting,
)
from flashmoe.quant import Format

__all__ = [
    "Activation",
    "Array",
    "ExpertCall",
    "ExpertShape",
    "Floats",
    "Ints",
    "Matrix",
    "Ops",
    "Primitives",
]


# What makes one value of a gate and an up value.
# swiglu: silu(gate) * up. swiglu_clamped (gpt-oss): with g = min(gate, 7) and u = up in [-7, 7],
# g * sigmoid(1.702 g) * (u + 1). swiglu_limited (DeepSeek-V4): silu(min(gate, 10)) * u with u = up
# in [-10, 10]. geglu_tanh (Gemma): gelu(gate) * up, gelu in its tanh approximation.
Activation = Literal["swiglu", "swiglu_clamped", "swiglu_limited", "geglu_tanh"]


class ExpertShape(Protocol):
    """What a backend must know of expert records; see store.format for the layout."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def gate_up(self) -> Format: ...
    @property
    def down(self) -> Format: ...
    @property
    def down_offset(self) -> int: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def bias_offset(self) -> int: ...
    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Residents:
    """Experts in memory that a backend can look up by itself, without a word to their owner.

    table: layer and expert to the address of a record (_native.ResidentTable). shapes: by layer.
    """

    table: Any
    shapes: Mapping[int, ExpertShape]


class Primitives(Protocol):
    """The single operations of a backend."""

    clock: PhaseClock

    def begin_pass(self) -> None:
        """A forward pass begins: the clock starts from nothing."""

    def begin_layer(self) -> None:
        """Give all scratch arrays back."""

    def release_scratch(self) -> None:
        """Give the memory of all scratch back to the system; no array of it may be in use."""

    def matrix(self, fmt: Format, rows: int, cols: int, data: NDArray[np.uint8]) -> Matrix:
        """A handle of stored bytes, which are kept alive or copied to the device."""

    def vector(self, values: Floats) -> Floats:
        """The values as an array of this backend."""

    def state(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """An array that outlives passes (keys and values, recurrent states); content undefined."""

    def empty(self, *shape: int) -> Floats:
        """An array whose content is undefined."""

    def concat(self, parts: Sequence[Floats]) -> Floats:
        """The parts joined along the first axis; a single part is returned as it is."""

    def embed(self, table: Matrix, ids: Ints) -> Floats:
        """Rows of the table -> [T, H]; they hold until the next `embed`."""

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """x [T, H] / rms(x) * weight."""

    def linear(self, x: Floats, *matrices: Matrix) -> tuple[Floats, ...]:
        """x [T, cols] @ W.T for each matrix -> [T, rows] each."""

    def linear_add(self, x: Floats, matrix: Matrix, out: Floats) -> None:
        """out [T, rows] += x @ W.T."""

    def head_linear(self, x: Floats, matrix: Matrix, out: Floats) -> None:
        """A linear map per head: out [T, heads, N] = x [T, heads, cols] @ W[head].T.

        matrix [heads * N, cols], N a multiple of 8; out strided in the first two axes."""

    def add_bias(self, x: Floats, bias: Floats) -> None:
        """x [T, rows] += bias [rows]."""

    def head_norm_rope(
        self,
        x: Floats,
        weight: Floats | None,
        eps: float,
        cos: Floats,
        sin: Floats,
        out: Floats | None = None,
    ) -> Floats:
        """Per-head RMSNorm (if weight [D]), then half-split rotation of the first dims.

        x [T, heads, D], strided in the first two axes, as is out (None: a new array, which is
        returned); cos, sin [T, R/2] with R <= D.
        """

    def kv_store(
        self, k: Floats, v: Floats, k_cache: Array, v_cache: Array, start: int, window: int = 0
    ) -> None:
        """k [T, heads, D] and v [T, heads, Dv] -> caches [heads, context, D] and
        [heads, context, Dv] (f32 or f16), whose rows may lie apart, at positions start...

        With a window: position p goes to p % context, a multiple of 64 >= T + window - 1."""

    def attention(
        self,
        q: Floats,
        k_cache: Array,
        v_cache: Array,
        start: int,
        scale: float,
        window: int = 0,
        sinks: Floats | None = None,
    ) -> Floats:
        """Causal grouped-query attention: q [T, Hq, D], query t sees keys 0..start+t
        -> [T, Hq, Dv]. Rows of the caches may lie apart or share memory.

        window: of those, the last `window` only (0: all), in caches that kv_store has filled so.
        sinks [Hq]: the score of one more key per head, whose value is zero."""

    def index_topk(self, q: Floats, weights: Floats, keys: Array, seen: Ints, k: int) -> Ints:
        """The keys that sparse attention looks at -> ids int32 [T, k], ascending.

        Of keys [context, Di] (f32 or f16) 0..seen[t] - 1, those with the largest sum over h of
        weights[t, h] * max(0, q[t, h] . key), for q [T, Hi, Di] and weights [T, Hi]; equal ones:
        the earlier. Where fewer than k are seen, all of them, then -1. On the host only."""

    def sigmoid(self, x: Floats) -> Floats:
        """1 / (1 + exp(-x)), elementwise."""

    def sigmoid_gate(self, x: Floats, gate: Floats) -> None:
        """x [T, heads, D] *= sigmoid(gate); gate may be strided in the first two axes."""

    def causal_conv_silu(self, u: Floats, weight: Floats, state: Floats) -> Floats:
        """silu of the depthwise causal convolution of u [T, C] by weight [C, W].

        state [W-1, C] holds the inputs before u, oldest first, and is brought up to date.
        """

    def gated_delta(
        self,
        qkv: Floats,
        a: Floats,
        b: Floats,
        a_log: Floats,
        dt_bias: Floats,
        state: Floats,
        position: int,
    ) -> Floats:
        """Gated delta rule; qkv [T, 2 Hk Dk + Hv Dv], state [Hv, Dk, Dv] updated -> [T, Hv, Dv].

        position: of the first token; whole blocks at absolute multiples of 64 are chunked."""

    def gated_rms_norm(self, x: Floats, gate: Floats, weight: Floats, eps: float) -> None:
        """x [N, D] = x / rms(x) * weight * silu(gate), in place."""

    def route(
        self,
        x: Floats,
        gate: Matrix,
        k: int,
        renormalize: bool,
        bias: Floats | None = None,
        sigmoid: SigmoidRouting | None = None,
    ) -> tuple[Ints, Floats]:
        """The K best experts per token -> ids, weights [T, K], the best first.

        A softmax unless `sigmoid` says otherwise; bias [E] is added to the logits."""

    def ffn_add(
        self,
        x: Floats,
        gate_up: Matrix,
        down: Matrix,
        out: Floats,
        scale: Floats | None,
        activation: Activation = "swiglu",
    ) -> None:
        """out [T, H] += scale [T] * down(activation(gate(x), up(x))).

        On a card a plain SwiGLU only."""

    def experts(self, x: Floats, shape: ExpertShape, rows: int) -> ExpertCall:
        """Prepare x [T, H] for the routed experts of one layer, with room for `rows` results."""

    def combine(self, rows: Floats, weights: Floats, out: Floats) -> None:
        """out [T, H] += sum over k, ascending, of weights[t, k] * rows[t * K + k]."""


class Ops(Primitives, Protocol):
    """One backend with its threads and work space; used by one engine thread."""

    def add_attention(
        self,
        h: Floats,
        weights: AttentionWeights,
        rope: tuple[Floats, Floats],
        spans: KvSpans,
    ) -> None:
        """h [T, H] += attention of norm(h); rope: cos, sin [T, R/2]; spans cover the rows."""

    def add_latent_attention(
        self,
        h: Floats,
        weights: LatentAttentionWeights,
        rope: tuple[Floats, Floats],
        spans: LatentSpans,
    ) -> None:
        """h [T, H] += latent attention of norm(h); rope and spans as above."""

    def add_gated_delta(self, h: Floats, weights: GatedDeltaWeights, spans: RecurrentSpans) -> None:
        """h [T, H] += gated delta rule of norm(h); spans cover the rows."""

    def norm_and_route(
        self, h: Floats, weights: RouterWeights, ahead: RouterWeights | None = None
    ) -> Routed:
        """norm(h) and the experts that it wants; ahead: also those that another layer's router
        would choose on the same h [T, H]."""

    def add_shared_expert(self, h: Floats, x: Floats, weights: SharedExpertWeights) -> None:
        """h [T, H] += sigmoid(x . gate) * SwiGLU(x), without the factor if there is no gate."""

    def add_dense_mlp(self, h: Floats, weights: DenseMlpWeights) -> None:
        """h [T, H] += SwiGLU(norm(h))."""

    def route_or_add_token(
        self,
        h: Floats,
        router: RouterWeights,
        shared: SharedExpertWeights | None,
        layer: int,
        residents: Residents,
    ) -> Routed | None:
        """norm_and_route for one token, h [1, H]. Or, where `residents` has all experts that it
        wants: note their uses in the table, h += shared and routed experts -> None."""

    def add_token_experts(
        self,
        h: Floats,
        x: Floats,
        shape: ExpertShape,
        addresses: NDArray[np.uint64],
        weights: Floats,
    ) -> None:
        """All routed experts of one token: h [1, H] += sum over k, ascending, of
        weights[0, k] * expert k (x); the record of expert k is at addresses[k] of [K]."""

    def head(self, h: Floats, weights: HeadWeights, out: Floats) -> None:
        """out [T, vocab_size] = the logits of h [T, H]."""

    def all_finite(self, x: Floats) -> bool:
        """Whether x [T, N] holds neither NaN nor infinity."""

    def release(self) -> None:
        """The weights will not be used again: let go of what was made of them."""


class ExpertCall(Protocol):
    """The routed experts of one layer applied to one x, in as many pieces as they arrive in."""

    rows: Floats  # [T * K, H], filled by run

    def run(
        self,
        addresses: NDArray[np.uint64],
        offsets: Ints,
        tokens: Ints,
        dests: Ints,
    ) -> None:
        """Expert i (record at addresses[i]) on x[tokens[j]], into rows[dests[j]], for
        j in offsets[i]..offsets[i + 1]."""
