"""Negative log-likelihood of a text in windows, and its distance from a reference's distributions.

All windows pass a layer before the next is read (generate/sweep.py) where the model can run so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flashmoe.evals.windows import Targets, Windows, cut_windows, read_text
from flashmoe.generate.hidden import HiddenStates
from flashmoe.generate.sweep import Sweep, can_sweep
from flashmoe.ops.base import Floats, Ints

if TYPE_CHECKING:
    from flashmoe.api import Model

__all__ = ["OnRows", "TextScore", "read_text", "score_text", "score_windows", "token_nll"]

# Called with (scored tokens before these, logits [T, vocab], targets [T]).
OnRows = Callable[[int, Floats, Ints], None]
Progress = Callable[[str], None]

_LOGITS_AT_A_TIME = 1 << 20
_LEAST_ROWS = 16  # the head's own batch, which the memory plan counts


@dataclass(frozen=True)
class TextScore:
    """nll: mean negative log-likelihood in nats per scored token; window_nll: its sum by window.

    order: "layers" if all windows passed a layer before the next one, else "windows". bytes_read:
    of experts, from the disk.
    """

    windows: int
    window_tokens: int
    scored_tokens: int
    nll: float
    stride: int = 0
    window_nll: list[float] = field(default_factory=list, repr=False)
    window_scored: list[int] = field(default_factory=list, repr=False)
    order: str = "windows"
    bytes_read: int = 0

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll)


def score_text(
    model: Model,
    text: str,
    windows: int,
    window_tokens: int,
    progress: Progress = lambda text: None,
) -> TextScore:
    """Score the first `windows` windows of a text, which do not overlap."""
    return score_windows(model, cut_windows(model, text, windows, window_tokens), progress)


def score_windows(
    model: Model,
    windows: Windows,
    progress: Progress = lambda text: None,
    on_rows: OnRows | None = None,
    directory: Path | None = None,
) -> TextScore:
    """Score windows. on_rows: gets the logits of every scored token, in order.

    directory: where hidden states are kept between layers, so that a run that broke off goes on;
    default a temporary one. Raises what Model.logits raises, StorageError.
    """
    model.restart_stats()
    sums, counts = [0.0] * len(windows.ids), [0] * len(windows.ids)
    total = 0
    for window, logits, targets in logits_of(model, windows, progress, directory):
        sums[window] += float(token_nll(logits, targets).sum())
        counts[window] += len(targets)
        if on_rows is not None:
            on_rows(total, logits, targets)
        total += len(targets)
    return TextScore(
        len(windows.ids),
        windows.tokens,
        total,
        sum(sums) / total,
        windows.stride,
        sums,
        counts,
        "layers" if can_sweep(model.session().engine) else "windows",
        model.stats.bytes_read,
    )


def logits_of(
    model: Model,
    windows: Targets,
    progress: Progress,
    directory: Path | None = None,
    rounded: int = 0,
) -> Iterator[tuple[int, Floats, Ints]]:
    """(window, logits [T, vocab], targets [T]) of all scored tokens, window by window.

    rounded: see Sweep; those windows come like the others.
    """
    if not can_sweep(model.session().engine):
        yield from _by_windows(model, windows, progress)
        return
    with TemporaryDirectory(prefix="flashmoe-eval-") as scratch:
        yield from _by_layers(model, windows, progress, directory or Path(scratch), rounded)


def _by_windows(
    model: Model, windows: Targets, progress: Progress
) -> Iterator[tuple[int, Floats, Ints]]:
    for n, ids in enumerate(windows.ids):
        wanted = windows.targets(n)
        logits = model.session().feed_all(ids[: wanted.stop - 1].tolist())
        yield n, logits[wanted.start - 1 :], ids[wanted.start : wanted.stop]
        progress(f"window {n + 1} of {len(windows.ids)}")


def _by_layers(
    model: Model, windows: Targets, progress: Progress, directory: Path, rounded: int
) -> Iterator[tuple[int, Floats, Ints]]:
    engine = model.session().engine
    hidden, tokens = engine.decoder.width, windows.tokens
    key = f"{model.fingerprint} {rounded} {hash_of(windows.ids)}"
    with HiddenStates(directory, windows.ids.size, hidden, key) as store:
        sweep = Sweep(engine, windows.ids, rounded)
        sweep.run(store, lambda done, layers: progress(f"layer {done:.1f} of {layers}"))
        size = max(_LEAST_ROWS, _LOGITS_AT_A_TIME // engine.vocab_size)
        for n, ids in enumerate(windows.ids):
            wanted = windows.targets(n)
            for begin in range(wanted.start, wanted.stop, size):
                end = min(begin + size, wanted.stop)
                h = store.read(n * tokens + begin - 1, n * tokens + end - 1)
                logits = np.empty((len(h), engine.vocab_size), dtype=np.float32)
                yield n, engine.logits_of(h, engine.prefill, logits), ids[begin:end]
            progress(f"scores of window {n + 1} of {len(windows.ids)}")


def hash_of(array: Ints) -> str:
    """A digest of shape and values."""
    return sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Logits [T, vocab] -> log probabilities, float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def token_nll(logits: Floats, targets: Ints) -> NDArray[np.float64]:
    """-log softmax(logits [T, vocab])[targets [T]] in float64 -> [T]."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    nll: NDArray[np.float64] = log_sum - wide[np.arange(len(targets)), targets]
    return nll
