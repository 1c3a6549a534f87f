"""Memory for weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashmoe.errors import MemoryBudgetError

if TYPE_CHECKING:
    from flashmoe._native import Arena


def take_arena(nbytes: int, what: str) -> Arena:
    """An arena in huge pages. A part of it becomes resident when it is first written: by the
    threads that read into it, while others compute.

    Raises MemoryBudgetError that names `what` if the system has not so much.
    """
    from flashmoe import _native  # the only part of experts/ that needs compiled code

    try:
        return _native.Arena(nbytes, huge_pages=True, threads=0)
    except MemoryError as error:
        raise MemoryBudgetError(
            f"the system refuses the memory for {what}",
            got=f"{nbytes} bytes",
            hint="Ask for a smaller --cache or --ram",
        ) from error
