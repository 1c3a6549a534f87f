"""Skewed routing for synthetic models: how often each expert is to be chosen, and how to get it.

Most families have no router biases, so one is made: hidden dimension 0 of every embedding is the
same number, layers add nothing to it, and column 0 of a router is what it adds to each expert's
logit. The rest of a logit is normally distributed over tokens; which biases then give which
frequencies is found by simulation.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flashmoe.bench.traces import CSV_HEADER, read_trace
from flashmoe.errors import UsageError
from flashmoe.files import storage_errors

Curve = NDArray[np.float64]

ANCHOR: Final = 4.0
"""Value of dimension 0 of an embedding, of which the other dimensions have standard deviation 1."""
# Variance that a synthetic layer adds to hidden states, whose embedding has 1; as measured.
_GROWTH: Final = 0.03
_ZIPF: Final = "zipf:"
# Frequencies beyond would need biases that bf16 or the simulation cannot tell apart.
_LEAST: Final = 1e-4
_TOKENS: Final = 8192
_ROUNDS: Final = 12
_STEP: Final = 0.7


@dataclass(frozen=True)
class Skew:
    """How often experts are to be chosen.

    text: as the user gave it. curves: weights float64 [E] by layer, used in turn; a single one is
    dealt to the experts anew in every layer, so that layers differ in which experts are hot.
    """

    text: str
    curves: tuple[Curve, ...]

    def frequencies(self, layer: int, chosen: int) -> Curve:
        """Wanted probability of each expert that a token chooses it, float64 [E], sum `chosen`."""
        wanted = share_out(self.curves[layer % len(self.curves)], chosen)
        if len(self.curves) == 1:
            wanted = np.random.default_rng([layer, len(wanted)]).permutation(wanted)
        return wanted


def parse_skew(text: str, num_experts: int) -> Skew:
    """ "zipf:S", or a file: a routing trace (docs/traces.md), or frequencies as CSV without a
    header, a line per layer and a column per expert. Raises UsageError, StorageError."""
    if text.startswith(_ZIPF):
        ranks = np.arange(1, num_experts + 1, dtype=np.float64)
        return Skew(text, (ranks ** -_exponent(text),))
    with storage_errors("cannot read", Path(text)), Path(text).open(encoding="utf-8") as file:
        first = file.readline().strip()
    is_trace = first == CSV_HEADER or first.startswith("{")
    curves = _of_trace(Path(text)) if is_trace else _of_table(Path(text))
    return Skew(text, tuple(_checked(curve, num_experts, text) for curve in curves))


def _exponent(text: str) -> float:
    try:
        exponent = float(text.removeprefix(_ZIPF))
    except ValueError as error:
        raise UsageError("not a number", where="--skew", expected="zipf:S", got=text) from error
    if not 0 <= exponent <= 8:
        raise UsageError("bad exponent", where="--skew", expected="0 to 8", got=text)
    return exponent


def _of_trace(path: Path) -> list[Curve]:
    """Uses of each expert, layer by layer; those of prompts count too."""
    trace = read_trace(path)
    layers = sorted({visit.layer for visit in trace.visits})
    uses = {layer: np.zeros(trace.num_experts) for layer in layers}
    for visit in trace.visits:
        uses[visit.layer][list(visit.experts)] += 1
    return list(uses.values())


def _of_table(path: Path) -> list[Curve]:
    with storage_errors("cannot read", path), path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    try:
        return [np.array([float(cell) for cell in row]) for row in rows]
    except ValueError as error:
        expected = "a number per expert in every line"
        raise UsageError(
            "not frequencies", where=path, expected=expected, got=str(error)
        ) from error


def _checked(curve: Curve, num_experts: int, text: str) -> Curve:
    if len(curve) != num_experts:
        raise UsageError(
            "frequencies of another number of experts",
            where=text,
            expected=num_experts,
            got=len(curve),
        )
    if not np.isfinite(curve).all() or curve.min() < 0 or not curve.any():
        raise UsageError("not frequencies", where=text, expected="numbers from 0 up", got=curve)
    return curve


def share_out(weights: Curve, chosen: int) -> Curve:
    """Probabilities in proportion to weights, none above 1, that add up to `chosen`.

    What an expert cannot take (nobody is chosen twice by a token) goes to the others.
    """
    floor = np.maximum(weights / weights.max(), _LEAST)
    low, high = 0.0, chosen / floor.min()
    for _ in range(200):  # bisection: the sum grows with the scale
        scale = (low + high) / 2
        low, high = (scale, high) if np.minimum(scale * floor, 1).sum() < chosen else (low, scale)
    shared: Curve = np.minimum(high * floor, 1)
    return shared


def logit_biases(frequencies: Curve, chosen: int, seed: int = 0) -> Curve:
    """Biases float64 [E], in standard deviations of a logit, with which experts are among the
    `chosen` largest of bias + N(0, 1) as often as wanted.

    Starts from a fixed threshold, for which the answer is a quantile, and corrects it by what a
    simulation finds.
    """
    wanted = _quantiles(frequencies)
    biases = wanted - wanted.mean()
    noise = np.random.default_rng(seed).standard_normal((_TOKENS, len(frequencies)))
    for _ in range(_ROUNDS):
        biases = biases + _STEP * (wanted - _quantiles(_chosen_shares(biases + noise, chosen)))
    centred: Curve = biases - biases.mean()
    return centred


def _quantiles(frequencies: Curve) -> Curve:
    normal = NormalDist()
    bounded = np.clip(frequencies, _LEAST, 1 - _LEAST)
    return np.array([normal.inv_cdf(share) for share in bounded.tolist()])


def _chosen_shares(logits: NDArray[np.float64], chosen: int) -> Curve:
    tops = np.argpartition(-logits, chosen - 1, axis=1)[:, :chosen]
    shares: Curve = np.bincount(tops.reshape(-1), minlength=logits.shape[1]) / len(logits)
    return shares


def anchor_size(layer: int) -> float:
    """What dimension 0 of the normed hidden state is before a layer's router."""
    return float(ANCHOR / np.sqrt(1 + (layer + 1) * _GROWTH))


def router_column(skew: Skew, layer: int, chosen: int) -> NDArray[np.float32]:
    """Column 0 of a layer's router, float32 [E]; its other weights have variance 1 / H."""
    frequencies = skew.frequencies(layer, chosen)
    seed = zlib.crc32(f"{skew.text} {layer}".encode())
    biases = logit_biases(frequencies, chosen, seed) / anchor_size(layer)
    return biases.astype(np.float32)


def top_shares(uses: Curve, order: Sequence[int]) -> list[float]:
    """Share of all picks that the first 1/16, 1/8, 1/4 and 1/2 of the experts in `order` take."""
    ordered = uses[list(order)] / uses.sum()
    return [float(ordered[: max(1, round(len(ordered) * part))].sum()) for part in TOP_PARTS]


TOP_PARTS: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
