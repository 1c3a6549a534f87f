"""Many sequences through a model layer by layer: all tokens pass a layer before the next is read.

One pass over the disk serves them all, as long as the cache holds the experts of one layer. The
result is, bit for bit, that of `Session.feed_all` of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from flashmoe.errors import ContextLengthError, UsageError
from flashmoe.generate.engine import Engine, cuts
from flashmoe.generate.hidden import HiddenStates
from flashmoe.layers.state import Batch, LayerState, Segment, SequenceState
from flashmoe.models.decoder import Decoder
from flashmoe.ops.base import Floats, Ints

# Called as (layers done, layers) now and then; the fraction of a layer counts.
OnSweep = Callable[[float, int], None]


def can_sweep(engine: Engine) -> bool:
    """Whether layers of this model can run one by one: those of the plain decoder, on the host."""
    return type(engine.decoder) is Decoder and isinstance(engine.ops.empty(1), np.ndarray)


@dataclass(frozen=True)
class Sweep:
    """Windows int32 [N, W] of token ids, each a sequence of its own.

    rounded: of the last so many windows the hidden state is rounded to bf16 after every layer, as
    a bf16 implementation does: what differs then is that rounding.
    """

    engine: Engine
    windows: Ints
    rounded: int = 0

    def run(self, store: HiddenStates, on_layer: OnSweep = lambda done, layers: None) -> None:
        """Fill `store` [N * W, H] with the hidden states after the last layer.

        Goes on where an earlier run over the same store ended. Raises ContextLengthError for
        windows longer than the context, UsageError for unknown ids; StorageError, ChecksumError.
        """
        self._check()
        engine, layers = self.engine, len(self.engine.decoder.layers)
        units = self._units()
        with engine.memory.prompt(self._chunk):
            if store.done < 0:
                self._embed(store, units)
            for layer in range(store.done, layers):
                for number, unit in enumerate(units):
                    store.write(unit.start * self._width, self._through(layer, unit, store))
                    on_layer(layer + (number + 1) / len(units), layers)
                engine.experts.end_step()
                store.advance()

    @property
    def _width(self) -> int:
        return int(self.windows.shape[1])

    @property
    def _chunk(self) -> int:
        return self.engine.memory.sweep_chunk(self.windows.size)

    def _units(self) -> list[range]:
        """Windows that pass a layer together: as many as a chunk holds. States for one layer of
        each are no more than the plan has counted for all layers of one sequence."""
        size = max(1, min(self._chunk // self._width, len(self.engine.decoder.layers)))
        count = len(self.windows)
        return [range(n, min(n + size, count)) for n in range(0, count, size)]

    def _embed(self, store: HiddenStates, units: list[range]) -> None:
        engine = self.engine
        for unit in units:
            ids = self.windows[unit.start : unit.stop].reshape(-1)
            for part in cuts(0, len(ids), self._chunk):
                rows = engine.decoder.embed(ids[part], engine.ops)
                store.write(unit.start * self._width + part.start, rows)
        store.advance()

    def _through(self, layer: int, unit: range, store: HiddenStates) -> Floats:
        """One layer of some windows -> their hidden states [len(unit) * W, H]."""
        engine, width = self.engine, self._width
        start = perf_counter()
        h = store.read(unit.start * width, unit.stop * width)
        engine.ops.begin_pass()
        states = [self._state(layer) for _ in unit]
        for part in cuts(0, width, self._chunk):
            self._run_part(layer, states, part, unit, h)
        keep = max(0, min(len(unit), len(self.windows) - self.rounded - unit.start)) * width
        round_to_bf16(h[keep:])
        seconds = perf_counter() - start
        if layer == 0:
            engine.prefill.tokens += len(h)
        engine.prefill.book(0, seconds, engine.ops.clock.take())
        engine.memory.after_pass(len(h), seconds)
        return h

    def _run_part(
        self, layer: int, states: list[SequenceState], part: slice, unit: range, h: Floats
    ) -> None:
        """Tokens `part` of each window; a part is less than a window only where that stands
        alone."""
        tokens = part.stop - part.start
        segments = [Segment(s, n * tokens, (n + 1) * tokens) for n, s in enumerate(states)]
        ids = self.windows[unit.start : unit.stop, part].reshape(-1)
        batch = Batch(ids, tuple(segments))
        engine, step = self.engine, self.engine.decoder.step(batch)
        whole = engine.decoder.layers[layer]
        rows = h if len(ids) == len(h) else h[part]
        engine.ops.clock.phase = "other"
        with engine.watch(batch):
            whole.mixer.add_to(rows, step, engine.ops)
            whole.mlp.add_to(rows, engine.experts, engine.ops, ids=ids)
        batch.advance()

    def _state(self, layer: int) -> SequenceState:
        """An empty sequence that has the state of one layer only."""
        engine, width = self.engine, self._width
        mixer = engine.decoder.layers[layer].mixer
        own = mixer.new_state(width, engine.kv_dtype, engine.ops.state)
        places: list[LayerState] = [own] * (layer + 1)
        return SequenceState(width, places)

    def _check(self) -> None:
        ids, engine = self.windows, self.engine
        if self._width > engine.context_length:
            raise ContextLengthError(
                "a window is longer than the context",
                where="window",
                expected=f"at most {engine.context_length} tokens",
                got=self._width,
            )
        if ids.min() < 0 or ids.max() >= engine.vocab_size:
            raise UsageError(
                "token id outside the vocabulary",
                where="windows",
                expected=f"0 to {engine.vocab_size - 1}",
                got=f"{ids.min()} to {ids.max()}",
            )


def round_to_bf16(x: Floats) -> None:
    """x = the nearest bfloat16 values, ties to even, in place."""
    bits = x.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits &= np.uint32(0xFFFF0000)
