"""The next token from logits on the card: only its id and its log-probability cross.

generate.sampling.Sampler step by step, on tensors of the card: the same order, float64
probabilities, ties to the lower id, and the same uniform numbers, drawn on the host from the same
seed. Sums run in another order, so that a draw within 1e-12 of a boundary between two tokens may
fall to the other one; the host's sampler is the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flashmoe.generate.sampling import SamplingOptions


class DeviceSampler:
    """Draws tokens by `options`; see flashmoe.generate.sampling.Sampler."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def sample(self, logits: torch.Tensor, history: Sequence[int]) -> tuple[int, float]:
        """The next token and its log-probability under the plain softmax of `logits`.

        logits: float32 [vocab], finite (a pass checks that). history: ids before this token.
        """
        scores = _penalise(logits, history, self._options.repeat_penalty)
        token = _first_best(scores) if self._options.temperature == 0 else self._draw(scores)
        logprob = logits.double().log_softmax(0)[token]
        id, value = torch.stack([token.double(), logprob]).tolist()  # one copy to the host
        return int(id), value

    def _draw(self, scores: torch.Tensor) -> torch.Tensor:
        options = self._options
        ordered, ids = torch.sort(scores, descending=True, stable=True)
        ordered, ids = (x[: options.top_k or None] for x in (ordered, ids))
        scaled = (ordered.double() - ordered[0].double()) / options.temperature
        probs = scaled.softmax(0)
        keep = probs >= options.min_p * probs[0]
        if options.top_p < 1:
            # The fewest whose sum reaches top_p: those before which it has not.
            keep[1:] &= torch.cumsum(probs, 0)[:-1] < options.top_p
        kept = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
        kept[ids] = torch.where(keep, probs, 0.0)
        sums = torch.cumsum(kept, 0)
        return torch.searchsorted(sums, self._random.random() * sums[-1:], right=True)[0]


def _first_best(scores: torch.Tensor) -> torch.Tensor:
    """The lowest id among the largest scores: argmax on a card promises no order."""
    ids = torch.arange(len(scores), device=scores.device)
    return torch.where(scores == scores.max(), ids, len(scores)).min()


def _penalise(logits: torch.Tensor, history: Sequence[int], penalty: float) -> torch.Tensor:
    if penalty == 1 or not history:
        return logits
    seen = torch.from_numpy(np.unique(np.asarray(history, dtype=np.int64))).to(logits.device)
    old, scores = logits[seen], logits.clone()
    scores[seen] = torch.where(old > 0, old / penalty, old * penalty)
    return scores
