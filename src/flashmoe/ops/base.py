"""The door to kernels: what a backend offers to layers. Backends: cpu (native), reference (NumPy).

Shapes: T tokens, H hidden_size, D head_dim, E experts, K experts per token. Arrays are float32
unless said otherwise. Returned arrays are scratch: they hold until the next `begin_layer`.

Every op is row-wise exact: a token's result is bit-identical whatever other tokens are in the call
and however many threads run it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flashmoe.ops.clock import PhaseClock
from flashmoe.quant import Format

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Array = NDArray[Any]


# A backend's own handle of a stored matrix, with `rows` and `cols`; only that backend looks inside.
Matrix = Any


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
    def __hash__(self) -> int: ...


class Ops(Protocol):
    """One backend with its threads and scratch memory; used by one engine thread."""

    clock: PhaseClock

    def begin_pass(self) -> None:
        """A forward pass begins: the clock starts from nothing."""

    def begin_layer(self) -> None:
        """Give all scratch arrays back."""

    def matrix(self, fmt: Format, rows: int, cols: int, data: NDArray[np.uint8]) -> Matrix:
        """A handle of stored bytes, which are kept alive or copied to the device."""

    def vector(self, values: Floats) -> Floats:
        """The values as an array of this backend."""

    def state(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Zeros that outlive a forward pass: keys and values, recurrent states."""

    def rotary(self, inv_freq: NDArray[np.float64], positions: Ints) -> tuple[Floats, Floats]:
        """cos and sin of positions [T] * inv_freq [R/2] -> float32 [T, R/2]; not scratch."""

    def to_host(self, x: Floats) -> Floats:
        """The values as a NumPy array; scratch, like any result."""

    def concat(self, parts: Sequence[Floats]) -> Floats:
        """The parts joined along the first axis; a single part is returned as it is."""

    def embed(self, table: Matrix, ids: Ints) -> Floats:
        """Rows of the table -> [T, H]; not scratch."""

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """x [T, H] / rms(x) * weight."""

    def linear(self, x: Floats, *matrices: Matrix) -> tuple[Floats, ...]:
        """x [T, cols] @ W.T for each matrix -> [T, rows] each.

        The quantised ones among the matrices share one group size."""

    def linear_add(self, x: Floats, matrix: Matrix, out: Floats) -> None:
        """out [T, rows] += x @ W.T."""

    def head_norm_rope(
        self, x: Floats, weight: Floats | None, eps: float, cos: Floats, sin: Floats
    ) -> Floats:
        """Per-head RMSNorm (if weight [D]), then half-split rotation of the first dims.

        x [T, heads, D], strided in the first two axes; cos, sin [T, R/2] with R <= D.
        """

    def kv_store(self, k: Floats, v: Floats, k_cache: Array, v_cache: Array, start: int) -> None:
        """k, v [T, heads, D] -> caches [heads, context, D] (f32 or f16) at positions start..."""

    def attention(
        self, q: Floats, k_cache: Array, v_cache: Array, start: int, scale: float
    ) -> Floats:
        """Causal grouped-query attention: q [T, Hq, D], query t sees keys 0..start+t."""

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

    def route(self, x: Floats, gate: Matrix, k: int, renormalize: bool) -> tuple[Ints, Floats]:
        """Softmax router: the K likeliest experts per token -> ids, weights [T, K], descending."""

    def ffn_add(
        self, x: Floats, gate_up: Matrix, down: Matrix, out: Floats, scale: Floats | None
    ) -> None:
        """out [T, H] += scale [T] * down(silu(gate(x)) * up(x))."""

    def experts(self, x: Floats, shape: ExpertShape, rows: int) -> ExpertCall:
        """Prepare x [T, H] for the routed experts of one layer, with room for `rows` results."""

    def combine(self, rows: Floats, weights: Floats, out: Floats) -> None:
        """out [T, H] += sum over k, ascending, of weights[t, k] * rows[t * K + k]."""


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
