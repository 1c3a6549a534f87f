"""Which format matrices get that are to be kept as they are, as far as one can. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Literal

from flashmoe.quant import Format
from flashmoe.store.row_sources import RowSource
from flashmoe.store.sources import exact_format

_log = logging.getLogger(__name__)
EXACT = Format("bf16")
# For matrices that must have one format and come in several: gate and up of a layer's experts.
MIXED = Format("q8", 32)
Keep = Literal["never", "quantised", "always"]
"""Which matrices stay in the format that holds them exactly: none, quantised ones, all."""


def choose(
    keep: Keep, otherwise: Format, matrices: Iterable[Sequence[RowSource]], what: str
) -> Format:
    """The one format of matrices, each of some sources: what holds all of them exactly, or not."""
    found = {exact_format(source) for sources in matrices for source in sources}
    if keep == "quantised" and len(found) > 1 and not found & {None, EXACT}:
        names = ", ".join(sorted(format_.name for format_ in found if format_))
        _log.warning("%s differ in type (%s): they become %s", what, names, MIXED.name)
        return MIXED
    exact = next(iter(found)) if len(found) == 1 else None
    if keep == "never" or exact is None or (keep == "quantised" and exact == EXACT):
        return otherwise
    return exact
