"""How far a model's distributions are from a reference's: KL divergence, agreement of the first.

The reference's log probabilities of every scored token are kept in a file: all of them, or, where
that would be too large, the likeliest with their ids. What is left of the mass then counts as one
outcome: the divergence is a lower bound, and the report says how many were kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from flashmoe.evals.perplexity import Progress, TextScore, log_softmax, logits_of, score_windows
from flashmoe.evals.windows import Windows
from flashmoe.files import storage_errors
from flashmoe.generate.sweep import can_sweep
from flashmoe.ops.base import Floats, Ints

if TYPE_CHECKING:
    from flashmoe.api import Model

_LARGEST_FILE: Final = 2 << 30
_KEPT_OF_MANY: Final = 1024
_SAVED: Final = "reference.json"
# Edges of the reference's probability of its likeliest token.
CONFIDENCE: Final = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)

Wide = NDArray[np.float64]
Mode = Literal["w+", "r"]


@dataclass
class Divergence:
    """Per scored token: kl in nats, whether the likeliest token is the reference's, and how likely
    that is to the reference."""

    kl: list[Wide] = field(default_factory=list)
    same: list[NDArray[np.bool_]] = field(default_factory=list)
    confidence: list[Wide] = field(default_factory=list)

    def add(self, kl: Wide, same: NDArray[np.bool_], confidence: Wide) -> None:
        """Some tokens more."""
        self.kl.append(np.maximum(kl, 0.0))
        self.same.append(same)
        self.confidence.append(confidence)

    def figures(self) -> dict[str, Any]:
        """kl_mean, kl_median, kl_p999, top1, and by_confidence: the same in bins."""
        kl, same = np.concatenate(self.kl), np.concatenate(self.same)
        confidence = np.concatenate(self.confidence)
        return _figures(kl, same) | {"by_confidence": list(_bins(kl, same, confidence))}


def _figures(kl: Wide, same: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "kl_mean": float(kl.mean()),
        "kl_median": float(np.median(kl)),
        "kl_p999": float(np.quantile(kl, 0.999)),
        "top1": float(same.mean()),
    }


def _bins(kl: Wide, same: NDArray[np.bool_], confidence: Wide) -> Any:
    places = np.clip(np.digitize(confidence, CONFIDENCE) - 1, 0, len(CONFIDENCE) - 2)
    for place, (low, high) in enumerate(pairwise(CONFIDENCE)):
        chosen = places == place
        if chosen.any():
            yield {"from": low, "to": high, "tokens": int(chosen.sum())} | _figures(
                kl[chosen], same[chosen]
            )


class Reference:
    """The log probabilities of a reference model for the scored tokens of some windows.

    score: of the reference itself. noise: figures of Divergence between the reference and itself
    with hidden states rounded to bf16 after every layer; None where that was not measured.
    mode: "w+": new files; "r": those of `save`.
    """

    def __init__(self, directory: Path, tokens: int, vocab: int, mode: Mode = "w+") -> None:
        fits = 4 * tokens * vocab <= _LARGEST_FILE
        self.kept = vocab if fits else min(vocab, _KEPT_OF_MANY)
        self.vocab, self.score = vocab, TextScore(0, 0, 0, 0.0)
        self.noise: dict[str, Any] | None = None
        shape = (tokens, self.kept)
        with storage_errors("cannot open", directory):
            directory.mkdir(parents=True, exist_ok=True)
            if mode == "w+":
                (directory / _SAVED).unlink(missing_ok=True)
            self._logs = np.memmap(directory / "logprobs.f32", np.float32, mode, shape=shape)
            self._ids = None
            if self.kept < vocab:
                self._ids = np.memmap(directory / "ids.i32", np.int32, mode, shape=shape)

    def save(self, directory: Path, key: str) -> None:
        """The files are whole: `saved` opens them again under the same key."""
        self._logs.flush()
        if self._ids is not None:
            self._ids.flush()
        about = {"key": key, "tokens": len(self._logs), "vocab": self.vocab}
        about |= {"score": asdict(self.score), "noise": self.noise}
        with storage_errors("cannot write", directory):
            (directory / _SAVED).write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def saved(cls, directory: Path, key: str) -> Self | None:
        """The reference of this key that `save` left in a directory; None if there is none."""
        file = directory / _SAVED
        with storage_errors("cannot read", file):
            about = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if about.get("key") != key:
            return None
        found = cls(directory, about["tokens"], about["vocab"], "r")
        found.score, found.noise = TextScore(**about["score"]), about["noise"]
        return found

    def put(self, begin: int, logits: Floats) -> None:
        """Keep the distributions of tokens begin..."""
        logs, rows = log_softmax(logits), slice(begin, begin + len(logits))
        if self._ids is not None:
            ids = np.argpartition(-logs, self.kept - 1, axis=1)[:, : self.kept]
            self._ids[rows] = ids
            logs = np.take_along_axis(logs, ids, axis=1)
        self._logs[rows] = logs

    def compare(self, begin: int, logits: Floats, into: Divergence) -> None:
        """Add the divergence of logits [T, vocab] of tokens begin... from this reference."""
        rows = slice(begin, begin + len(logits))
        own, other = self._logs[rows].astype(np.float64), log_softmax(logits)
        first = own.argmax(axis=1)
        if self._ids is not None:
            first = np.take_along_axis(self._ids[rows], first[:, None], axis=1)[:, 0]
        same = other.argmax(axis=1) == first
        if self._ids is not None:
            own, other = (
                with_rest(x) for x in (own, np.take_along_axis(other, self._ids[rows], 1))
            )
        into.add(divergence(own, other), same, np.exp(own.max(axis=1)))


def divergence(own: Wide, other: Wide) -> Wide:
    """KL of log probabilities [T, n] from other ones -> [T], in nats."""
    result: Wide = (np.exp(own) * (own - other)).sum(axis=1)
    return result


def with_rest(logs: Wide) -> Wide:
    """Log probabilities [T, n] of some outcomes -> [T, n + 1], the last that of all others."""
    rest = np.maximum(1.0 - np.exp(logs).sum(axis=1, keepdims=True), 1e-12)
    return np.concatenate([logs, np.log(rest)], axis=1)


def make_reference(
    model: Model, windows: Windows, directory: Path, progress: Progress, noise: bool = True
) -> Reference:
    """Score the reference and keep its distributions in `directory`.

    noise: measure also what rounding to bf16 makes of it, in a second pass over the disk; not where
    a model cannot run layer by layer.
    """
    engine = model.session().engine
    reference = Reference(directory, windows.scored, engine.vocab_size)

    def keep(begin: int, logits: Floats, targets: Ints) -> None:
        reference.put(begin, logits)

    reference.score = score_windows(model, windows, progress, keep, directory / "sweep")
    if noise and can_sweep(engine):
        reference.noise = _noise(model, windows, reference, directory, progress)
    return reference


def _noise(
    model: Model, windows: Windows, reference: Reference, directory: Path, progress: Progress
) -> dict[str, Any]:
    found, begin, count = Divergence(), 0, len(windows.ids)
    parts = logits_of(model, windows, progress, directory / "rounded", rounded=count)
    for _, logits, targets in parts:
        reference.compare(begin, logits, found)
        begin += len(targets)
    return found.figures()
