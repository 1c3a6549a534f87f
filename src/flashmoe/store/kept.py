"""Which format keeps the experts of a quantised source."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flashmoe.quant import Format
from flashmoe.store.sources import BlockRows, GgufMxfp4Rows, Mxfp4Rows, RowSource

_log = logging.getLogger(__name__)
# For layers that differ: all layers of a pack have one format.
MIXED = Format("q8", 32)


def kept_format(sources: Sequence[RowSource], otherwise: Format) -> Format:
    """The format that holds what all these sources hold, exactly.

    otherwise: for sources that are not quantised. Where they differ, q8 in groups of 32, which is
    said in a warning.
    """
    formats = {_kept(source) for source in sources}
    if len(formats) > 1:
        names = sorted({source.tensor.dtype for source in sources})
        _log.warning("experts differ in type (%s): those become %s", ", ".join(names), MIXED.name)
        return MIXED
    return formats.pop() or otherwise


def _kept(source: RowSource) -> Format | None:
    if isinstance(source, BlockRows | GgufMxfp4Rows):
        return source.kept
    return Format("mxfp4", 32) if isinstance(source, Mxfp4Rows) else None
