"""Memory for weights, taken in pieces so that Ctrl-C is heard in between."""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Final

from flashmoe.errors import MemoryBudgetError

if TYPE_CHECKING:
    from flashmoe._native import Arena

_PIECE: Final = 256 << 20  # a tenth of a second, at worst


def take_arena(nbytes: int, threads: int, what: str, seconds: float = math.inf) -> Arena:
    """An arena in huge pages, made resident from its beginning on `threads`.

    seconds: what is not resident by then becomes so when it is first written.
    Raises MemoryBudgetError that names `what` if the system has not so much.
    """
    from flashmoe import _native  # the only part of experts/ that needs compiled code

    try:
        arena = _native.Arena(nbytes, huge_pages=True, threads=0)
        end = monotonic() + seconds
        for offset in range(0, nbytes, _PIECE):
            if monotonic() > end:
                break
            arena.populate(offset, min(_PIECE, nbytes - offset), threads)
    except MemoryError as error:
        raise MemoryBudgetError(
            f"the system refuses the memory for {what}",
            got=f"{nbytes} bytes",
            hint="Ask for a smaller --cache or --ram",
        ) from error
    return arena
