"""From logits to the next token.

Order of operations: penalties, bias, mask; then the largest (greedy), or top-k, temperature,
softmax over what is left, top-p, min-p, draw. Probabilities are float64, and a draw takes one
uniform number from PCG64, so that a seed gives the same answer on every platform. Ties go to the
lower token id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import NumericError, UsageError

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]
Ids = NDArray[np.intp]

_Rule = tuple[type, Callable[[Any], bool], str]
_RULES: dict[str, _Rule] = {
    "max_tokens": (Integral, lambda v: v >= 1, "an integer of at least 1"),
    "temperature": (Real, lambda v: 0 <= v < inf, "a number of at least 0"),
    "top_p": (Real, lambda v: 0 < v <= 1, "a number above 0 and up to 1"),
    "top_k": (Integral, lambda v: v >= 0, "an integer of at least 0 (0: off)"),
    "min_p": (Real, lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "repeat_penalty": (Real, lambda v: 0 < v < inf, "a number above 0 (1: off)"),
    "presence_penalty": (Real, lambda v: -inf < v < inf, "a number (0: off)"),
    "frequency_penalty": (Real, lambda v: -inf < v < inf, "a number (0: off)"),
}


@dataclass(frozen=True)
class SamplingOptions:
    """How an answer is drawn and where it ends. Raises UsageError naming a bad option.

    max_tokens: upper limit of the answer; the context may end it earlier.
    temperature: 0 is greedy and ignores top_p, top_k, min_p and seed.
    top_k: the k most likely tokens; 0 is off. top_p: the fewest tokens whose probabilities reach
    it. min_p: tokens of at least this share of the most likely one's probability.
    repeat_penalty: logits of tokens seen before (prompt included) are divided by it when positive
    and multiplied when negative.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens of the answer so far,
    once, and once per occurrence. logit_bias: added to the logits of these ids.
    seed: None draws a fresh one. stop: texts that end the answer and are not shown.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, (kind, valid, expected) in _RULES.items():
            value = getattr(self, name)
            _require(isinstance(value, kind) and valid(value), name, expected, value)
        seed, stop = self.seed, (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        seed_fits = seed is None or (isinstance(seed, Integral) and seed >= 0)
        _require(seed_fits, "seed", "an integer of at least 0", seed)
        _require(all(isinstance(s, str) and s for s in stop), "stop", "texts, none empty", stop)
        object.__setattr__(self, "stop", stop)
        bias_fits = all(_is_bias(id, value) for id, value in self.logit_bias.items())
        _require(bias_fits, "logit_bias", "token ids with finite numbers", self.logit_bias)


def _is_bias(id: Any, value: Any) -> bool:
    typed = isinstance(id, Integral) and isinstance(value, Real)
    return typed and bool(id >= 0 and -inf < value < inf)


def _require(fits: bool, option: str, expected: str, got: object) -> None:
    if not fits:
        raise UsageError("wrong value", where=option, expected=expected, got=repr(got))


class Sampler:
    """Draws tokens by `options`; the same seed and logits give the same tokens."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def sample(
        self, logits: Logits, history: Sequence[int], answer_start: int = 0
    ) -> tuple[int, float]:
        """The next token and its log-probability under the plain softmax of `logits`.

        As `choose`, without a mask.
        """
        token = self.choose(logits, history, answer_start)
        return token, float(logits[token]) - log_total(logits)

    def choose(
        self,
        logits: Logits,
        history: Sequence[int],
        answer_start: int = 0,
        mask: Callable[[Logits], None] | None = None,
    ) -> int:
        """The next token.

        logits: float32 [vocab]. history: ids before this token, for the penalties; the answer
        begins at answer_start. mask: writes -inf where a token is not allowed.
        Raises NumericError when a logit is NaN or infinite, UsageError when the mask allows none.
        """
        _require_finite(logits)
        scores = _penalise(logits, history, answer_start, self._options)
        if mask is not None:
            scores = scores.copy() if scores is logits else scores
            mask(scores)
            _require_any(scores)
        greedy = self._options.temperature == 0
        return int(np.argmax(scores)) if greedy else self._draw(scores)

    def _draw(self, scores: Logits) -> int:
        options = self._options
        ids = _top_k(scores, options.top_k)
        ids, probs = _top_p(ids, _softmax(scores[ids], options.temperature), options.top_p)
        likely = probs >= options.min_p * probs.max()
        cumulative = np.cumsum(probs[likely])
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[likely][drawn])


def _require_finite(logits: Logits) -> None:
    bad = np.flatnonzero(~np.isfinite(logits))
    if bad.size:
        value = logits[bad[0]]
        raise NumericError("logits are not finite", where=f"token {bad[0]}", got=value)


def _require_any(scores: Logits) -> None:
    if scores.max() == -inf:
        raise UsageError("the constraint allows no token at all", where="grammar")


def _penalise(
    logits: Logits, history: Sequence[int], answer_start: int, options: SamplingOptions
) -> Logits:
    """The logits themselves if nothing changes them, else a changed copy."""
    counted = options.presence_penalty != 0 or options.frequency_penalty != 0
    if (options.repeat_penalty == 1 or not history) and not counted and not options.logit_bias:
        return logits
    scores = logits.copy()
    with np.errstate(over="ignore"):  # Off to -inf is as good as never.
        if options.repeat_penalty != 1 and history:
            seen, penalty = np.asarray(history, dtype=np.intp), options.repeat_penalty
            old = logits[seen]
            scores[seen] = np.where(old > 0, old / penalty, old * penalty)
        if counted and len(history) > answer_start:
            said, counts = np.unique(history[answer_start:], return_counts=True)
            scores[said] -= options.presence_penalty + options.frequency_penalty * counts
        for id, bias in options.logit_bias.items():
            if id < scores.size:
                scores[id] += bias
    return scores


def _top_k(scores: Logits, k: int) -> Ids:
    """Ids, ascending, of the k largest scores (all if k is 0)."""
    if k == 0 or k >= scores.size:
        return np.arange(scores.size)
    smallest = np.partition(scores, scores.size - k)[scores.size - k]
    candidates = np.flatnonzero(scores >= smallest)
    return np.sort(candidates[_descending(scores[candidates])[:k]])


def _top_p(ids: Ids, probs: Floats, p: float) -> tuple[Ids, Floats]:
    """The fewest most likely tokens, ids ascending, whose probabilities sum to p or more."""
    if p == 1:
        return ids, probs
    # Tokens below this bound sum to less than 1 - p and cannot be needed: far less to sort.
    candidates = np.flatnonzero(probs >= (1 - p) / probs.size)
    order = candidates[_descending(probs[candidates])]
    count = int(np.searchsorted(np.cumsum(probs[order]), p, side="left")) + 1
    kept = np.sort(order[:count])
    return ids[kept], probs[kept]


def _descending(values: Logits | Floats) -> Ids:
    """Indices by falling value; equal values keep their order."""
    return np.argsort(-values, kind="stable")


def _softmax(scores: Logits, temperature: float) -> Floats:
    with np.errstate(over="ignore"):  # A tiny temperature sends the losers to -inf.
        scaled = (scores.astype(np.float64) - scores.max()) / temperature
    powers = np.exp(scaled)
    return np.asarray(powers / powers.sum())


def log_total(logits: Logits) -> float:
    """log of the sum of exp(logits [vocab]): a token's log probability is its logit less this."""
    # The powers may be float32, several times faster: each is off by less than 1e-5 of the total.
    top = logits.max()
    total = np.exp(logits - top).sum(dtype=np.float64)
    return float(top) + float(np.log(total))


def likeliest(logits: Logits, count: int) -> Ids:
    """Ids of the `count` largest logits, the largest first."""
    candidates = _top_k(logits, min(count, logits.size)) if count else np.empty(0, dtype=np.intp)
    return candidates[_descending(logits[candidates])]
