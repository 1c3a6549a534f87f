"""Rules of routing against a fixed number of experts at the same bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
_FIXED = re.compile(r"k=\d+")


def kind_of(rule: str) -> str:
    """The family of rules that a rule is of: its first name; "k" for the model as it is."""
    return rule.partition("=")[0] or "k"


def is_fixed(rule: str) -> bool:
    """Whether a rule is a fixed K, or none."""
    return not rule or _FIXED.fullmatch(rule) is not None


def fixed_k_at(rows: Sequence[Row], bytes_per_token: float) -> float | None:
    """The loss of a fixed K that reads so many bytes, on straight lines between those measured;
    None where they read all more or all less, or there are fewer than two."""
    known = sorted(
        (row["bytes_per_token"], row["delta_nll"]["mean"]) for row in rows if is_fixed(row["rule"])
    )
    if len(known) < 2 or not known[0][0] <= bytes_per_token <= known[-1][0]:
        return None
    return float(np.interp(bytes_per_token, *zip(*known, strict=True)))
