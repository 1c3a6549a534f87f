"""The rows of the comparison, and the arithmetic on their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

from flashmoe.errors import UsageError

Kind = Literal["decode", "prefill"]
Run = dict[str, Any]
"""What a process reported: tokens, seconds, disk_bytes, peak_bytes and so on."""

PROMPT_TOKENS: Final = 512


@dataclass(frozen=True)
class Row:
    """One line of the table.

    share: memory limit as a share of the model; None: no limit, and all weights are in memory
    before the clock starts. With a limit the start is cold. tokens: timed. warm_up: tokens run
    beforehand by both engines, one by one for decode, as one prompt for prefill.
    """

    name: str
    kind: Kind
    share: float | None
    tokens: int
    warm_up: int

    @property
    def in_memory(self) -> bool:
        return self.share is None


ROWS: Final = (
    Row("decode_ram", "decode", None, tokens=64, warm_up=16),
    Row("prefill_ram", "prefill", None, tokens=PROMPT_TOKENS, warm_up=PROMPT_TOKENS),
    Row("decode_25", "decode", 0.25, tokens=48, warm_up=16),
    Row("decode_50", "decode", 0.50, tokens=48, warm_up=16),
    Row("prefill_25", "prefill", 0.25, tokens=PROMPT_TOKENS, warm_up=32),
)


def chosen_rows(names: str | None) -> list[Row]:
    """ "decode_25,decode_50" -> these rows, in the order of ROWS; None: all. Raises UsageError."""
    if names is None:
        return list(ROWS)
    wanted = set(names.split(","))
    known = [row.name for row in ROWS]
    if unknown := wanted.difference(known):
        expected, got = ", ".join(known), ", ".join(sorted(unknown))
        raise UsageError("unknown row", where="--only", expected=expected, got=got)
    return [row for row in ROWS if row.name in wanted]


def tokens_per_second(run: Run) -> float:
    """Of the timed part."""
    rate: float = run["tokens"] / run["seconds"]
    return rate


def ratio_figures(pairs: Sequence[tuple[Run, Run]]) -> dict[str, Any]:
    """(ours, the peer's) runs -> both medians in tokens per second, and their ratio.

    pair_ratios: of each pair, which tells how far the machine was steady.
    """
    ours = [tokens_per_second(run) for run, _ in pairs]
    theirs = [tokens_per_second(run) for _, run in pairs]
    return {
        "ratio": median(ours) / median(theirs),
        "flashmoe_median": median(ours),
        "peer_median": median(theirs),
        "pairs": len(pairs),
        "pair_ratios": [own / peer for own, peer in zip(ours, theirs, strict=True)],
    }


def bound_figures(
    runs: Sequence[Run], touched_bytes: int, rates: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Decode runs of ours beside the bound max(missed / disk rate, touched / memory rate).

    rates: disk and memory in bytes per second, measured around each run: a disk that others use
    too differs between minutes. touched_bytes: weights that a token uses.
    """
    missed = [run["engine"]["bytes_read_per_token"] for run in runs]
    bounds = [
        1 / max(m / disk, touched_bytes / memory)
        for m, (disk, memory) in zip(missed, rates, strict=True)
    ]
    reached = [tokens_per_second(run) for run in runs]
    fractions = [rate / bound for rate, bound in zip(reached, bounds, strict=True)]
    return {
        "ratio": median(fractions),
        "fractions": fractions,
        "flashmoe_median": median(reached),
        "bound_median": median(bounds),
        "pairs": len(runs),
        "bytes_missed_per_token": median(missed),
        "bytes_touched_per_token": touched_bytes,
        "disk_bytes_per_s": median([disk for disk, _ in rates]),
        "memory_bytes_per_s": median([memory for _, memory in rates]),
    }
