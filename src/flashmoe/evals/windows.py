"""A text cut into windows of tokens, and which of their tokens are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flashmoe.errors import UsageError
from flashmoe.ops.base import Ints

if TYPE_CHECKING:
    from flashmoe.api import Model


class Targets(Protocol):
    """Sequences int32 [N, W] and, of each, the places of the tokens whose logits are wanted."""

    @property
    def ids(self) -> Ints: ...
    @property
    def tokens(self) -> int:
        """W."""

    def targets(self, window: int) -> range:
        """Places of a sequence's targets: without gaps, not the first."""


@dataclass(frozen=True)
class Windows:
    """ids int32 [N, W]: window n begins at token n * stride of the text.

    The first token of a window is context only; where windows overlap, so is all that the window
    before has scored.
    """

    ids: Ints
    stride: int

    @property
    def tokens(self) -> int:
        """W."""
        return int(self.ids.shape[1])

    def first_target(self, window: int) -> int:
        """Position in a window of the first token that is scored."""
        return 1 if window == 0 else max(1, self.tokens - self.stride)

    def targets(self, window: int) -> range:
        """Positions in a window of the tokens that are scored."""
        return range(self.first_target(window), self.tokens)

    @property
    def scored(self) -> int:
        """Tokens that are scored, of all windows."""
        return sum(len(self.targets(n)) for n in range(len(self.ids)))


def read_text(path: Path) -> str:
    """A UTF-8 text file; UsageError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the text: {error}", where=path) from error


def cut_windows(
    model: Model, text: str, count: int, tokens: int, stride: int | None = None
) -> Windows:
    """The first `count` windows of `tokens` tokens; stride: tokens from one to the next (default:
    they touch). Raises UsageError where the text is too short."""
    step = stride or tokens
    if count < 1 or tokens < 2 or step < 1:
        raise UsageError("wrong value", where="windows", expected="windows of at least 2 tokens")
    ids = np.array(model.tokenizer.encode(text), dtype=np.int32)
    found = max(0, (len(ids) - tokens) // step + 1)
    if found < count:
        raise UsageError(
            "the text does not hold these windows",
            where="windows x window-tokens",
            expected=f"at most {found} windows of {tokens} tokens",
            got=count,
        )
    return Windows(np.stack([ids[n * step : n * step + tokens] for n in range(count)]), step)
