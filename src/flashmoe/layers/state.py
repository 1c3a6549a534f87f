"""What a sequence carries from token to token: keys and values, or the state of a delta rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.ops.base import Array, Floats, Ints

StateMemory = Callable[[tuple[int, ...], DTypeLike], Array]
"""Zeros of a shape and type (Ops.state)."""


class KvCache:
    """Keys and values of one attention layer: [num_key_value_heads, context, head_dim] each.

    Memory is reserved for the whole context and becomes resident as positions are written.
    """

    def __init__(
        self, heads: int, context: int, head_dim: int, dtype: DTypeLike, memory: StateMemory
    ) -> None:
        self.k = memory((heads, context, head_dim), dtype)
        self.v = memory((heads, context, head_dim), dtype)

    @staticmethod
    def nbytes(heads: int, context: int, head_dim: int, dtype: DTypeLike) -> int:
        """Bytes of keys and values together."""
        return 2 * heads * context * head_dim * np.dtype(dtype).itemsize

    def reset(self) -> None:
        """Nothing to do: positions past the sequence are never read."""


class DeltaState:
    """State of one gated delta layer: conv [W-1, C] past inputs, s [Hv, Dk, Dv]; float32."""

    def __init__(self, conv: tuple[int, int], s: tuple[int, int, int], memory: StateMemory) -> None:
        self.conv: Floats = memory(conv, np.float32)
        self.s: Floats = memory(s, np.float32)

    def reset(self) -> None:
        """Back to the empty sequence."""
        self.conv[...] = 0
        self.s[...] = 0


@dataclass
class SequenceState:
    """One sequence: its next position and one state per layer."""

    context_length: int
    layers: list[KvCache | DeltaState]
    position: int = 0

    def reset(self) -> None:
        """Back to the empty sequence."""
        self.position = 0
        for layer in self.layers:
            layer.reset()


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence inside a batch: rows [begin, end) of it."""

    state: SequenceState
    begin: int
    end: int

    @property
    def start(self) -> int:
        """Position of the first of these tokens in its sequence."""
        return self.state.position


@dataclass(frozen=True)
class Batch:
    """Tokens of one forward pass: decode steps and prefill chunks of one or several sequences.

    ids int32 [T]; segments cover rows 0..T in order. `advance` moves the sequences on.
    """

    ids: Ints
    segments: tuple[Segment, ...]

    @staticmethod
    def single(state: SequenceState, ids: Ints) -> Batch:
        """The next tokens of one sequence."""
        return Batch(ids, (Segment(state, 0, len(ids)),))

    def positions(self) -> Ints:
        """Position of each token in its sequence -> int32 [T]."""
        parts = [np.arange(s.start, s.start + s.end - s.begin) for s in self.segments]
        return np.concatenate(parts).astype(np.int32)

    def advance(self) -> None:
        """Count the tokens of this batch as part of their sequences."""
        for segment in self.segments:
            segment.state.position += segment.end - segment.begin


@dataclass(frozen=True)
class Step:
    """What the layers of one forward pass share: whose tokens these are, and their rotation."""

    segments: tuple[Segment, ...]
    rope: tuple[Floats, Floats]  # cos, sin [T, rotary_dim / 2]
