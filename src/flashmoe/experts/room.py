"""Memory that a prompt borrows from the cache: the scratch of its chunk, for as long as it runs.

A decode step needs scratch for one token only, so the budget holds that of the smallest chunk and
the cache gets the rest. A prompt passes over all layers once per chunk and reads nearly every
expert each time, whatever the cache holds; a larger chunk means fewer passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.interrupts import uninterrupted
from flashmoe.ops.parts import CHUNK_STEP

LONGEST_CHUNK: Final = 4096
"""Then each expert serves hundreds of tokens per read, and computing takes longer than reading."""


@dataclass(frozen=True, slots=True)
class PromptCosts:
    """What decides the length of a chunk. Sizes in bytes.

    scratch_per_token: of a pass. spare: what the budget leaves over. slot_bytes: of one record.
    layers, num_experts, num_experts_per_tok: of the model. floor: slots that are never lent.
    lendable: False where the user fixed the experts in memory (--cache all).
    """

    scratch_per_token: int
    spare: int
    slot_bytes: int
    layers: int
    num_experts: int
    num_experts_per_tok: int
    floor: int
    lendable: bool = True

    def chunk(self, tokens: int, slots: int) -> int:
        """Tokens per pass for a prompt of so many: the multiple of 64 that reads least.

        slots: of the cache now. Of equals the largest: it makes the largest matrix products.
        """
        longest = min(-(-tokens // CHUNK_STEP) * CHUNK_STEP, LONGEST_CHUNK)
        room = slots - self.floor if self.lendable else 0
        chunks = range(CHUNK_STEP, longest + 1, CHUNK_STEP)
        fitting = [chunk for chunk in chunks if self.lent(chunk) <= max(0, room)]
        return min(fitting, key=lambda chunk: (self.read_bytes(tokens, chunk, slots), -chunk))

    def sweep_chunk(self, tokens: int, slots: int) -> int:
        """Tokens per pass where all of `tokens` go through a layer before the next one is read.

        The longest that leaves slots for all experts of a layer: then each is read once. Where
        there are not so many slots, as for a prompt.
        """
        longest = min(-(-tokens // CHUNK_STEP) * CHUNK_STEP, LONGEST_CHUNK)
        room = slots - max(self.floor, self.num_experts) if self.lendable else 0
        if room < 0:
            return self.chunk(tokens, slots)
        chunks = range(CHUNK_STEP, longest + 1, CHUNK_STEP)
        return max(chunk for chunk in chunks if self.lent(chunk) <= max(room, 0))

    def lent(self, chunk: int) -> int:
        """Slots that make room for the scratch of a chunk, beyond what the budget holds."""
        missing = self.scratch_per_token * (chunk - CHUNK_STEP) - self.spare
        return max(0, -(-missing // self.slot_bytes))

    def read_bytes(self, tokens: int, chunk: int, slots: int) -> int:
        """An estimate of what the prompt reads, and decode again for what was lent.

        With routing spread evenly a pass touches 1 - (1 - K/E)^chunk of all experts; what the
        cache keeps of them is not read.
        """
        share = 1 - (1 - self.num_experts_per_tok / self.num_experts) ** min(chunk, tokens)
        touched = share * self.layers * self.num_experts
        lent = self.lent(chunk)
        passes = -(-tokens // chunk)
        return round((passes * max(0.0, touched - (slots - lent)) + lent) * self.slot_bytes)


class CacheSize:
    """The one who resizes a cache: what it should have, less what is lent.

    floor: slots that it always keeps. on_return: called before lent slots come back, to give up
    what took their memory.
    """

    def __init__(self, cache: ExpertCache, floor: int, on_return: Callable[[], None]) -> None:
        self.slots, self.slot_bytes = cache.slots, cache.slot_bytes
        self._cache, self._floor, self._on_return = cache, floor, on_return
        self._lent = 0

    def resize(self, slots: int) -> None:
        """Have so many slots, now or as soon as the loan is over; between steps."""
        self.slots = slots
        self._apply()

    @contextmanager
    def lend(self, slots: int) -> Iterator[None]:
        """Give up so many slots for as long as the body runs.

        They come back however it ends, but for Ctrl-C in the instant before they do: then after
        the next loan.
        """
        try:
            self._lent = slots
            self._apply()
            yield
        finally:
            with uninterrupted():
                self._take_back()

    def _take_back(self) -> None:
        self._on_return()
        self._lent = 0
        self._apply()

    def _apply(self) -> None:
        slots = max(self._floor, self.slots - self._lent)
        if slots != self._cache.slots:
            self._cache.resize(slots)
