"""Reads on a guess: into spare memory, so that a wrong guess costs no resident expert."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from flashmoe.experts.policy import Key
from flashmoe.store.extent import Extent
from flashmoe.store.landing import Landing


def staging_slots(slots: int, total: int, experts_per_token: int, *, keep: bool) -> int:
    """How many of a cache's slots are for guesses; 0 where nothing is evicted or kept.

    Two layers' experts of one token: one layer's guesses may still be ending when the next are
    made. At most an eighth of the slots, because every one of them is missing in the cache.
    """
    return min(2 * experts_per_token, slots // 8) if keep and slots < total else 0


@dataclass(slots=True)
class Guess:
    """A record that is being read, or (landed) has been read whole and good, to address.

    sure: its expert is needed, and the reader knows."""

    tag: int
    key: Key
    extent: Extent | Landing
    address: int
    landed: bool = False
    sure: bool = False


class Staging:
    """Spare memory and the guesses in it. A guess is open until it is claimed or dropped; the
    memory of a dropped one is in use until its read has landed."""

    def __init__(self, spare: list[int]) -> None:
        self._free = spare
        self._open: dict[Key, Guess] = {}
        self._reading: dict[int, Guess] = {}

    @property
    def open(self) -> Collection[Guess]:
        """Guesses that may still come true, in the order in which they were made."""
        return self._open.values()

    @property
    def reading(self) -> int:
        """Reads under way, of dropped guesses too."""
        return len(self._reading)

    @property
    def room(self) -> int:
        """How many guesses can be made now."""
        return len(self._free)

    def add(self, tag: int, key: Key, extent: Extent | Landing) -> Guess:
        """A new guess, which takes spare memory: there must be room."""
        guess = Guess(tag, key, extent, self._free[-1])
        self._open[key], self._reading[tag] = guess, guess
        self._free.pop()
        return guess

    def claim(self, key: Key) -> Guess | None:
        """The guess of this expert, if there is one that will land. Its memory is the caller's, who
        gives other memory in return."""
        guess = self._open.get(key)
        if guess is None:
            return None
        if not (guess.landed or guess.sure):  # waiting for it could last for ever
            self.drop(guess)
            return None
        del self._open[key]
        self._reading.pop(guess.tag, None)
        return guess

    def give(self, address: int) -> None:
        """Memory is spare from now on."""
        self._free.append(address)

    def drop(self, guess: Guess) -> None:
        """An open guess was wrong."""
        del self._open[guess.key]
        if guess.landed:
            self.give(guess.address)

    def land(self, tag: int, *, good: bool) -> tuple[Guess, bool]:
        """A read has landed -> the guess, and whether its record can be claimed from now on."""
        guess = self._reading.pop(tag)
        guess.landed = True
        is_open = self._open.get(guess.key) is guess
        if is_open and not good:
            self.drop(guess)
        elif not is_open:
            self.give(guess.address)
        return guess, is_open and good

    def reset(self, spare: list[int]) -> None:
        """Forget all guesses: nothing is being read. spare: all spare memory."""
        self._open.clear()
        self._reading.clear()
        self._free = spare
