"""Expert records of a packed model, as the cache wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flashmoe.experts.source import Extent
from flashmoe.store.packed import PackedModel


class PackedSource:
    """flashmoe.experts.source.ExpertSource on a PackedModel."""

    def __init__(self, pack: PackedModel) -> None:
        self._extents = pack.extents

    @property
    def files(self) -> Sequence[Path]:
        """Every experts file."""
        return [extents[0].path for extents in self._extents.values()]

    def extent(self, layer: int, expert: int) -> Extent:
        """Where the expert's record lies."""
        return self._extents[layer][expert]
