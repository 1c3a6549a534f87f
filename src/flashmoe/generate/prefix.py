"""Beginnings of sequences, kept so that a request that begins alike need not run them again.

Pieces are named by their tokens and all before them, so that any number of requests share what
they have in common. What is restored is, bit for bit, what running the tokens as a prompt gives:
reuse does not show in an answer. Therefore states of a delta rule are kept from prompts only, at
multiples of 64: an answer's own tokens went through it one by one, which rounds differently.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from flashmoe.errors import MemoryBudgetError
from flashmoe.generate.blocks import (
    BLOCK,
    Bytes,
    chain,
    fixed_arrays,
    pack,
    row_arrays,
    unpack,
)
from flashmoe.generate.prefix_files import PrefixFiles
from flashmoe.layers.state import SequenceState
from flashmoe.ops.base import Array
from flashmoe.sizes import format_size

Piece = tuple[bytes, str]
_ROWS, _FIXED = "rows", "fixed"


def root_of(results: tuple[object, ...]) -> bytes:
    """A name for what decides states beside the tokens: pack, precision, kernels."""
    return blake2b(repr(results).encode(), digest_size=32).digest()


class PrefixCache:
    """Kept prefixes of one model in RAM, and on disk where `files` is given.

    ram_bytes: the most that pieces take; the least recently used go first. Raises MemoryBudgetError
    if not even one block of 64 tokens, with what belongs to its end, fits.
    """

    def __init__(
        self, root: bytes, state: SequenceState, ram_bytes: int, files: PrefixFiles | None = None
    ) -> None:
        self._root, self._limit, self._files = root, ram_bytes, files
        self._kept: OrderedDict[Piece, Bytes] = OrderedDict()
        self._total = 0
        self._whole = not fixed_arrays(state)  # rows are all there is
        needed = sum(a.nbytes for a in (*row_arrays(state, 0), *fixed_arrays(state)))
        if ram_bytes < needed:
            raise MemoryBudgetError(
                "too small to keep any prefix",
                where="--prefix-ram",
                expected=f"at least {format_size(needed)}",
                got=format_size(ram_bytes),
            )

    @property
    def nbytes(self) -> int:
        """Bytes in RAM now."""
        return self._total

    def restore(self, ids: Sequence[int], state: SequenceState) -> int:
        """Bring an empty state as far as is known of ids, short of the last token -> tokens."""
        names = chain(self._root, ids, (len(ids) - 1) // BLOCK)
        blocks = 0
        while blocks < len(names) and self._load((names[blocks], _ROWS), row_arrays(state, blocks)):
            blocks += 1
        fixed = fixed_arrays(state)
        while blocks and fixed and not self._load((names[blocks - 1], _FIXED), fixed):
            blocks -= 1
        self._touch(names[:blocks])
        state.position = blocks * BLOCK
        return state.position

    def limit(self, position: int, tokens: int, prompt_tokens: int) -> int:
        """How many of the next `tokens` of a prompt to run, so that its state can be kept."""
        last = (prompt_tokens - 1) // BLOCK * BLOCK
        inside = not self._whole and position < last < position + tokens
        return last - position if inside else tokens

    def keep(self, ids: Sequence[int], state: SequenceState, prompt: bool) -> None:
        """Keep what is new of a sequence that was run up to its position.

        prompt: all of it was run as a prompt.
        """
        blocks, rest = divmod(state.position, BLOCK)
        if not self._whole and (rest or not prompt):
            return
        names = chain(self._root, ids, blocks)
        if names and not self._whole:
            self._store((names[-1], _FIXED), fixed_arrays(state))
        for number, name in enumerate(names):
            self._store((name, _ROWS), row_arrays(state, number))
        self._touch(names)

    def _touch(self, names: Sequence[bytes]) -> None:
        """They were used, the first last: without its beginning a prefix is of no use."""
        for name in reversed(names):
            for piece in ((name, _FIXED), (name, _ROWS)):
                if piece in self._kept:
                    self._kept.move_to_end(piece)

    def _load(self, piece: Piece, arrays: Sequence[Array]) -> bool:
        buffer = self._kept.get(piece)
        if buffer is None and self._files is not None:
            buffer = self._files.read(piece, sum(a.nbytes for a in arrays))
            if buffer is not None:
                self._put(piece, buffer)
        if buffer is None:
            return False
        unpack(buffer, arrays)
        return True

    def _store(self, piece: Piece, arrays: Sequence[Array]) -> None:
        if piece not in self._kept and (self._files is None or piece not in self._files):
            self._make_room(sum(a.nbytes for a in arrays))
            buffer = pack(arrays)
            self._put(piece, buffer)
            if self._files is not None:
                self._files.write(piece, buffer)

    def _put(self, piece: Piece, buffer: Bytes) -> None:
        self._make_room(buffer.nbytes)
        self._kept[piece] = buffer
        self._total += buffer.nbytes

    def _make_room(self, nbytes: int) -> None:
        while self._kept and self._total + nbytes > self._limit:
            self._total -= self._kept.popitem(last=False)[1].nbytes
