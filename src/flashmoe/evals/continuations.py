"""Log-likelihoods of continuations after contexts, all of them in few passes over the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from flashmoe.errors import UsageError
from flashmoe.evals.perplexity import Progress, log_softmax, logits_of
from flashmoe.ops.base import Floats, Ints

if TYPE_CHECKING:
    from flashmoe.api import Model

# Share of a common pass's rows that may be padding.
_PADDING: Final = 0.25

Ids = Sequence[int]


@dataclass(frozen=True)
class Score:
    """logprob: natural, summed over the continuation. greedy: each of its tokens is the likeliest
    there."""

    logprob: float
    greedy: bool


@dataclass(frozen=True)
class _Batch:
    """Token sequences int32 [N, W], padded on the right; of each the targets that are asked for."""

    ids: Ints
    wanted: Sequence[range]

    @property
    def tokens(self) -> int:
        """W."""
        return int(self.ids.shape[1])

    def targets(self, window: int) -> range:
        """Places of the tokens whose logits are wanted."""
        return self.wanted[window]


def score_continuations(
    model: Model,
    requests: Sequence[tuple[Ids, Ids]],
    progress: Progress = lambda text: None,
) -> list[Score]:
    """The score of each (context, continuation), token ids.

    Requests that agree in all but the last token are run once; what has a similar length passes
    each layer together, where the model can run so. Raises UsageError for an empty context or
    continuation, ContextLengthError for more than context_length tokens and one, StorageError.
    """
    for context, continuation in requests:
        if not context or not continuation:
            raise UsageError(
                "nothing to score", where="continuation", expected="tokens on each side"
            )
    shared: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(requests):
        shared.setdefault((*context, *continuation[:-1]), []).append(number)
    found: dict[int, Score] = {}
    for group in groups(list(shared)):
        wanted = [min(len(requests[n][0]) for n in shared[ids]) for ids in group]
        for row, start, logits in _rows(model, group, wanted, progress):
            logs = log_softmax(logits)
            for number in shared[group[row]]:
                context, continuation = requests[number]
                found[number] = _score(logs[len(context) - start :], continuation)
    return [found[number] for number in range(len(requests))]


def groups(sequences: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Sequences by length, the longest first, cut where one would be more than a quarter shorter
    than the longest of its group."""
    result: list[list[tuple[int, ...]]] = []
    for ids in sorted(sequences, key=len, reverse=True):
        if not result or len(ids) < (1 - _PADDING) * len(result[-1][0]):
            result.append([])
        result[-1].append(ids)
    return result


def _rows(
    model: Model, group: Sequence[Ids], first: Sequence[int], progress: Progress
) -> Iterator[tuple[int, int, Floats]]:
    """(sequence, place of the first target, logits of its targets up to one past its end)."""
    # A column more: the token after a sequence's last is a target, too.
    ids = np.zeros((len(group), len(group[0]) + 1), dtype=np.int32)
    for row, one in enumerate(group):
        ids[row, : len(one)] = one
    wanted = [range(start, len(one) + 1) for start, one in zip(first, group, strict=True)]
    parts: list[Floats] = []
    for row, logits, targets in logits_of(model, _Batch(ids, wanted), progress):
        parts.append(logits.copy())
        if sum(map(len, parts)) == len(wanted[row]):
            yield row, wanted[row].start, np.concatenate(parts)
            parts = []
        assert len(targets) == len(logits)


def _score(logs: Floats, continuation: Ids) -> Score:
    """Of log probabilities [T, vocab] whose first row is that of the continuation's first token."""
    rows = logs[: len(continuation)]
    chosen = rows[np.arange(len(continuation)), list(continuation)]
    same = rows.argmax(axis=1) == np.asarray(continuation)
    return Score(float(chosen.sum()), bool(same.all()))
