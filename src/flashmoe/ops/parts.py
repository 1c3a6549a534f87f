"""The parts of a layer as backends see them: the weights of each, and the states they work on.

Weights compare by identity: a backend may keep what it makes of them (handles, copies on a device)
beside them. H is hidden_size, D head_dim, T tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Array = NDArray[Any]

# A backend's own handle of a stored matrix, with `rows` and `cols`; only that backend looks inside.
Matrix = Any
State = TypeVar("State", covariant=True)


class Span(NamedTuple, Generic[State]):
    """Rows begin..end of a pass: the next tokens of a sequence, the first of them at `start`."""

    begin: int
    end: int
    start: int
    state: State


class KvState(Protocol):
    """Keys and values of a sequence, [Hkv, context, D] each; handle: free for the backend.

    Of a layer with a window, a ring: position p at p % context.
    """

    k: Array
    v: Array
    handle: Any


class LatentState(Protocol):
    """rows [1, context, R + P]: latent vector and rotated key of a token; handle: as above.

    latent and rope: views of both parts of each row.
    """

    rows: Array
    latent: Array
    rope: Array
    handle: Any


class RecurrentState(Protocol):
    """conv [W-1, C] past inputs, s [Hv, Dk, Dv]; handle: free for the backend."""

    conv: Floats
    s: Floats
    handle: Any


KvSpans = Sequence[Span[KvState]]
LatentSpans = Sequence[Span[LatentState]]
RecurrentSpans = Sequence[Span[RecurrentState]]


# Block of the delta rule's chunked form, at absolute positions: a prompt that is cut at multiples
# of it has the same result as in one piece.
CHUNK_STEP = 64


def delta_spans(position: int, tokens: int) -> list[tuple[slice, int]]:
    """Cut tokens at positions position... into (rows, chunk): whole blocks of 64 in the chunked
    form, what is left at either end in the recurrent form (chunk 0).

    Blocks start at absolute multiples of 64, so that the result does not depend on how a prompt
    is cut into passes as long as the cuts fall on such multiples.
    """
    head = min(-position % CHUNK_STEP, tokens)
    body = (tokens - head) // CHUNK_STEP * CHUNK_STEP
    spans = [(0, head, 0), (head, head + body, CHUNK_STEP), (head + body, tokens, 0)]
    return [(slice(begin, end), chunk) for begin, end, chunk in spans if end > begin]


# Tokens that go through the cache of a layer with a window at a time: a ring has room for so many.
WINDOW_PIECE = 512


def window_pieces(begin: int, end: int, window: int) -> list[tuple[int, int]]:
    """Rows begin..end as they go through a layer's cache, one piece after the other."""
    size = WINDOW_PIECE if window else end - begin
    return [(at, min(at + size, end)) for at in range(begin, end, size)]


class AttentionBiases(NamedTuple):
    """One number per row of each projection."""

    q: Floats
    k: Floats
    v: Floats
    o: Floats | None


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Grouped-query attention with rotary positions and, where given, norms and biases.

    q_norm, k_norm: of each head, or of all heads together: their length says which.

    gated: each head of q_proj is [q | gate], and the result is multiplied by sigmoid(gate).
    window: a token sees the last `window` tokens, itself among them; 0: all before it.
    sinks: per head, the score of one more key, whose value is zero.
    """

    norm: Floats  # [H], of the part's input
    q_proj: Matrix  # [Hq * D (* 2 if gated), H]
    k_proj: Matrix  # [Hkv * D, H]
    v_proj: Matrix  # [Hkv * D, H]
    o_proj: Matrix  # [H, Hq * D]
    q_norm: Floats | None  # [D] or [Hq * D]
    k_norm: Floats | None  # [D] or [Hkv * D]
    head_dim: int
    eps: float
    gated: bool = False
    biases: AttentionBiases | None = None
    sinks: Floats | None = None  # [Hq]
    window: int = 0

    @property
    def num_heads(self) -> int:
        return int(self.o_proj.cols) // self.head_dim

    @property
    def num_key_value_heads(self) -> int:
        return int(self.k_proj.rows) // self.head_dim

    @property
    def scale(self) -> float:
        """What the scores are multiplied by."""
        return float(self.head_dim**-0.5)

    def split_norm(self, norm: Floats | None) -> tuple[Floats | None, Floats | None]:
        """q_norm or k_norm -> (that of all heads together, that of each head), one of them None."""
        if norm is None or len(norm) == self.head_dim:
            return None, norm
        assert not self.gated, "rows of a gated projection are not all queries"
        return norm, None


# Of the norms inside latent attention, whatever rms_norm_eps says: so in published implementations.
LATENT_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class LatentAttentionWeights:
    """Hq heads, latent vectors of R; N dimensions of a query are not rotated, P are, a value has V.

    The input of q_nope and q_rope, of width Q, is that of the layer if there is no q_a_proj.
    Rotated rows are in half-split order. scale: what the scores are multiplied by.
    """

    norm: Floats  # [H], of the part's input
    q_a_proj: Matrix | None  # [Q, H]
    q_a_norm: Floats | None  # [Q]
    q_nope: Matrix  # [Hq * N, Q]
    q_rope: Matrix  # [Hq * P, Q]
    kv_latent: Matrix  # [R, H]
    kv_norm: Floats  # [R]
    k_rope: Matrix  # [P, H]
    k_up: Matrix  # [Hq * R, N]: per head the transpose of what makes keys
    v_up: Matrix  # [Hq * V, R]
    o_proj: Matrix  # [H, Hq * V]
    num_heads: int
    scale: float
    eps: float

    @property
    def rank(self) -> int:
        """R, the width of a latent vector."""
        return int(self.kv_latent.rows)

    @property
    def rope_dim(self) -> int:
        """P, the width of the rotated part of a key."""
        return int(self.k_rope.rows)


@dataclass(frozen=True, eq=False)
class GatedDeltaWeights:
    """Kd = Hk * Dk, Vd = Hv * Dv; in_proj_qkv and conv1d are in the order q, k, v."""

    input_norm: Floats  # [H]
    in_proj_qkv: Matrix  # [2 Kd + Vd, H]
    in_proj_z: Matrix  # [Vd, H]
    in_proj_a: Matrix  # [Hv, H]
    in_proj_b: Matrix  # [Hv, H]
    out_proj: Matrix  # [H, Vd]
    conv1d: Floats  # [2 Kd + Vd, W]
    a_log: Floats  # [Hv]
    dt_bias: Floats  # [Hv]
    norm: Floats  # [Dv], of the result of a head
    num_key_heads: int
    eps: float


@dataclass(frozen=True, eq=False)
class SigmoidRouting:
    """Group-limited sigmoid routing (DeepSeek-V3, https://arxiv.org/abs/2412.19437, 2.1.2).

    Experts are chosen by sigmoid(logit) + correction, out of the chosen_groups of `groups` equal
    groups whose two best have the largest sum; weights are sigmoids times scale.
    """

    correction: Floats  # [E]
    groups: int
    chosen_groups: int
    scale: float


@dataclass(frozen=True, eq=False)
class RouterWeights:
    """A router: the num_experts_per_tok best of E experts, by a softmax unless `sigmoid` is given.

    renormalize: their weights are divided by their sum. bias is added to the logits.
    """

    norm: Floats  # [H], of the part's input
    gate: Matrix  # [E, H]
    num_experts_per_tok: int
    renormalize: bool
    eps: float
    bias: Floats | None = None  # [E]
    sigmoid: SigmoidRouting | None = None


@dataclass(frozen=True, eq=False)
class SharedExpertWeights:
    """A SwiGLU that every token uses, scaled by sigmoid(x . gate) if there is a gate."""

    gate_up: Matrix  # [2 I, H], rows of gate and up alternating in blocks of 8
    down: Matrix  # [H, I]
    gate: Matrix | None  # [1, H]


@dataclass(frozen=True, eq=False)
class DenseMlpWeights:
    """A SwiGLU in place of experts."""

    norm: Floats  # [H], of the part's input
    gate_up: Matrix  # [2 I, H], rows of gate and up alternating in blocks of 8
    down: Matrix  # [H, I]
    eps: float


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The final norm and the output projection.

    softcap: logits become softcap * tanh(logits / softcap); 0: they stay. On the host only.
    """

    norm: Floats  # [H]
    lm_head: Matrix  # [vocab_size, H]
    eps: float
    softcap: float = 0.0


class Routed(NamedTuple):
    """What a router says; the arrays hold until the next `norm_and_route`.

    x [T, H]: the normed input, also that of the experts. ids, weights [T, K], by falling weight.
    ids_ahead [T, K]: what another layer's router would choose now, if that was asked.
    """

    x: Floats
    ids: Ints
    weights: Floats
    ids_ahead: Ints | None
