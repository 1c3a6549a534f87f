"""Negative log-likelihood of a text, in windows that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import UsageError
from flashmoe.ops.base import Floats, Ints

if TYPE_CHECKING:
    from flashmoe.api import Model


@dataclass(frozen=True)
class TextScore:
    """nll: mean negative log-likelihood in nats per scored token."""

    windows: int
    window_tokens: int
    scored_tokens: int
    nll: float

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll)


def read_text(path: Path) -> str:
    """A UTF-8 text file; UsageError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the text: {error}", where=path) from error


def score_text(
    model: Model,
    text: str,
    windows: int,
    window_tokens: int,
    on_window: Callable[[int, int], None] | None = None,
) -> TextScore:
    """Score the first `windows` windows of a text; the first token of each is context only."""
    ids = np.array(model.tokenizer.encode(text), dtype=np.int32)
    found = len(ids) // window_tokens
    if windows < 1 or window_tokens < 2 or found < windows:
        raise UsageError(
            "the text does not hold these windows",
            where="windows x window-tokens",
            expected=f"at most {found} windows of {window_tokens} tokens",
            got=windows,
        )
    total = 0.0
    for n in range(windows):
        window = ids[n * window_tokens : (n + 1) * window_tokens]
        total += float(token_nll(model.logits(window)[:-1], window[1:]).sum())
        if on_window is not None:
            on_window(n + 1, windows)
    scored = windows * (window_tokens - 1)
    return TextScore(windows, window_tokens, scored, total / scored)


def token_nll(logits: Floats, targets: Ints) -> NDArray[np.float64]:
    """-log softmax(logits [T, vocab])[targets [T]] in float64 -> [T]."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    nll: NDArray[np.float64] = log_sum - wide[np.arange(len(targets)), targets]
    return nll
