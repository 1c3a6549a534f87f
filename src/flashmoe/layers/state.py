"""What a sequence carries from token to token: keys and values, or the state of a delta rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from flashmoe.ops.base import Array, Floats, Ints
from flashmoe.ops.parts import WINDOW_PIECE, Span

StateMemory = Callable[[tuple[int, ...], DTypeLike], Array]
"""An array of a shape and type, its content undefined (Ops.state of a backend)."""

_KEY_BLOCK = 64  # rings are whole blocks of keys; see native/cpu/attention/attention.h


def cache_positions(context_length: int, window: int = 0) -> int:
    """Positions that an attention layer keeps: all, or a ring that holds what a piece sees."""
    if not window:
        return context_length
    return -(-(window + WINDOW_PIECE - 1) // _KEY_BLOCK) * _KEY_BLOCK


class KvCache:
    """Keys and values of one attention layer: [num_key_value_heads, positions, head_dim] each.

    positions: the whole context, or, of a layer with a window, a ring (`cache_positions`).
    Memory is reserved for the whole context and becomes resident as positions are written.
    """

    def __init__(
        self,
        heads: int,
        positions: int,
        head_dim: int,
        dtype: DTypeLike,
        memory: StateMemory,
        ring: bool = False,
    ) -> None:
        self.ring = ring
        self.k = memory((heads, positions, head_dim), dtype)
        self.v = memory((heads, positions, head_dim), dtype)
        self.handle: Any = None  # of the backend that uses the arrays

    @staticmethod
    def nbytes(heads: int, positions: int, head_dim: int, dtype: DTypeLike) -> int:
        """Bytes of keys and values together."""
        return 2 * heads * positions * head_dim * np.dtype(dtype).itemsize

    def reset(self) -> None:
        """Nothing to do: positions past the sequence are never read."""

    def kept(self, position: int) -> bool:
        """Whether all earlier positions are still there after `position` tokens."""
        return bool(position <= self.k.shape[1])


class LatentCache:
    """What multi-head latent attention keeps: rows [1, positions, latent_dim + rope_dim].

    A row is a token's latent vector, then the rotated key that all heads share. Memory as KvCache.
    """

    def __init__(
        self, positions: int, latent_dim: int, rope_dim: int, dtype: DTypeLike, memory: StateMemory
    ) -> None:
        self.rows = memory((1, positions, latent_dim + rope_dim), dtype)
        self.latent, self.rope = self.rows[..., :latent_dim], self.rows[..., latent_dim:]
        self.handle: Any = None  # of the backend that uses the arrays

    def reset(self) -> None:
        """Nothing to do: positions past the sequence are never read."""

    def kept(self, position: int) -> bool:
        """Always: whether all earlier positions are still there after `position` tokens."""
        return True


class IndexedCache(LatentCache):
    """A LatentCache, and the keys of the layer's indexer: index_keys [positions, index_dim]."""

    def __init__(
        self,
        positions: int,
        latent_dim: int,
        rope_dim: int,
        index_dim: int,
        dtype: DTypeLike,
        memory: StateMemory,
    ) -> None:
        super().__init__(positions, latent_dim, rope_dim, dtype, memory)
        self.index_keys = memory((positions, index_dim), dtype)


class DeltaState:
    """State of one gated delta layer: conv [W-1, C] past inputs, s [Hv, Dk, Dv]; float32."""

    def __init__(self, conv: tuple[int, int], s: tuple[int, int, int], memory: StateMemory) -> None:
        self.conv: Floats = memory(conv, np.float32)
        self.s: Floats = memory(s, np.float32)
        self.handle: Any = None  # of the backend that uses the arrays
        self.reset()

    def reset(self) -> None:
        """Back to the empty sequence."""
        self.conv[...] = 0
        self.s[...] = 0

    def kept(self, position: int) -> bool:
        """Never: there is one state, of the last position."""
        return False


class Entries:
    """Compressed keys: rows [n, D], of which there is one for every `ratio` positions.

    tail float32 [kept, width]: what the entries under way are made of, position p at p % kept.
    """

    def __init__(
        self,
        size: tuple[int, int],
        ratio: int,
        tail: tuple[int, int],
        dtype: DTypeLike,
        memory: StateMemory,
    ) -> None:
        self.ratio = ratio
        self.rows = memory(size, dtype)
        self.tail: Floats = memory(tail, np.float32)

    def of_positions(self, begin: int, end: int) -> Array:
        """The entries that were finished at positions begin..end."""
        return self.rows[begin // self.ratio : end // self.ratio]


class CompressedCache:
    """A ring of keys, which are the values too, [1, positions, D], and compressed ones if the
    layer has any: those that attention sees, and those that its indexer looks at."""

    def __init__(
        self,
        rows: tuple[int, int],
        dtype: DTypeLike,
        memory: StateMemory,
        entries: Entries | None = None,
        index_entries: Entries | None = None,
    ) -> None:
        self.rows = memory((1, *rows), dtype)
        self.entries, self.index_entries = entries, index_entries
        self.handle: Any = None  # of the backend that uses the arrays

    @property
    def compressed(self) -> list[Entries]:
        """Both kinds of entries, as far as there are any."""
        return [one for one in (self.entries, self.index_entries) if one is not None]

    @property
    def arrays(self) -> list[Array]:
        """All memory of the layer."""
        return [self.rows, *(part for one in self.compressed for part in (one.rows, one.tail))]

    def reset(self) -> None:
        """Nothing to do: positions past the sequence are never read."""

    def kept(self, position: int) -> bool:
        """Whether all earlier positions are still there after `position` tokens."""
        lengths = [self.rows.shape[1], *(len(one.tail) for one in self.compressed)]
        return bool(position <= min(lengths))


Kind = TypeVar("Kind", KvCache, LatentCache, IndexedCache, DeltaState, CompressedCache)
LayerState = KvCache | LatentCache | DeltaState | CompressedCache


@dataclass
class SequenceState:
    """One sequence: its next position and one state per layer."""

    context_length: int
    layers: list[LayerState]
    position: int = 0

    def reset(self) -> None:
        """Back to the empty sequence."""
        self.position = 0
        for layer in self.layers:
            layer.reset()

    def can_repeat(self, tokens: int) -> bool:
        """Whether the next `tokens` can be run again after a pass over them broke off.

        Keys and values are written at the same places again; a ring has lost none that they see
        if they were one piece; the state of a delta rule has moved on for good. What the entries
        of compressed attention are made of survives a single token.
        """
        return all(_can_repeat(layer, tokens) for layer in self.layers)

    def rewind(self, position: int, reached: int) -> None:
        """Back to `position`, or to the empty sequence where a layer has lost what was there.

        reached: how many positions may have been written.
        """
        if position == reached or all(layer.kept(reached) for layer in self.layers):
            self.position = position
        else:
            self.reset()


def _can_repeat(layer: LayerState, tokens: int) -> bool:
    if isinstance(layer, CompressedCache):
        return tokens == 1
    if isinstance(layer, KvCache):
        return tokens <= WINDOW_PIECE or not layer.ring
    return isinstance(layer, LatentCache)


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of one sequence inside a batch: rows [begin, end) of it.

    ahead: tokens of the same sequence that are before these in the same batch.
    """

    state: SequenceState
    begin: int
    end: int
    ahead: int = field(default=0, kw_only=True)

    @property
    def start(self) -> int:
        """Position of the first of these tokens in its sequence."""
        return self.state.position + self.ahead


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


class Rotary(Protocol):
    """Rotations by position: layers.rope.RotaryTable, or the same on a device."""

    def at(self, positions: Ints) -> tuple[Floats, Floats]:
        """positions [T] -> cos, sin [T, rotary_dim / 2]."""

    def at_one(self, position: int) -> tuple[Floats, Floats]:
        """at([position])."""


@dataclass(frozen=True)
class Step:
    """What the layers of one forward pass share: whose tokens these are, and their rotations.

    ropes: cos, sin [T, rotary_dim / 2] of each table that the model has. carried: what a layer
    hands to later ones.
    """

    segments: tuple[Segment, ...]
    ropes: tuple[tuple[Floats, Floats], ...]
    carried: dict[str, Ints] = field(default_factory=dict)

    @property
    def rope(self) -> tuple[Floats, Floats]:
        """That of a model with one table."""
        return self.ropes[0]

    @staticmethod
    def of(batch: Batch, *tables: Rotary) -> Step:
        """The step that a batch makes."""
        if len(batch.ids) == 1:
            start = batch.segments[0].start
            return Step(batch.segments, tuple(table.at_one(start) for table in tables))
        positions = batch.positions()
        return Step(batch.segments, tuple(table.at(positions) for table in tables))

    def spans(self, layer: int, kind: type[Kind]) -> list[Span[Kind]]:
        """The rows of each sequence with its state of one layer."""
        spans = []
        for segment in self.segments:
            state = segment.state.layers[layer]
            assert isinstance(state, kind)
            spans.append(Span(segment.begin, segment.end, segment.start, state))
        return spans
