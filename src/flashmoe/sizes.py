"""Amounts of memory as people write them."""

from __future__ import annotations

import math
import re
from typing import Final

from flashmoe.errors import UsageError

_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%|[kmgt](?:i?b)?|b)?", re.IGNORECASE)
_POWERS: Final = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str, *, option: str, whole: int | None = None) -> int:
    """Bytes of "3G", "512MiB", "1.5g", "2GB", "25%" or "4096", rounded down.

    K, M, G, T and KiB ... are powers of 1024; KB, MB, GB, TB are powers of 1000, as disks are sold.
    whole: what a percentage (at most 100%) is taken of; None: percentages are refused.
    Raises UsageError that names the option.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise _not_a_size(text, option, whole)
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit == "%":
        if whole is None or number > 100:
            raise _not_a_size(text, option, whole)
        return math.floor(whole * number / 100)
    size = number * _unit_bytes(unit)
    if size >= 2**63:
        raise _not_a_size(text, option, whole)
    return math.floor(size)


def format_size(nbytes: int) -> str:
    """For reading: "512 bytes", "1.5 MiB", "24.03 GiB"."""
    if nbytes < 2**10:
        return f"{nbytes} bytes"
    if nbytes < 2**20:
        return f"{nbytes / 2**10:.1f} KiB"
    if nbytes < 2**30:
        return f"{nbytes / 2**20:.1f} MiB"
    return f"{nbytes / 2**30:.2f} GiB"


def _unit_bytes(unit: str) -> int:
    if unit in ("", "b"):
        return 1
    base = 1000 if len(unit) == 2 else 1024
    return int(base ** _POWERS[unit[0]])


def _not_a_size(text: str, option: str, whole: int | None) -> UsageError:
    examples = "3G, 512MiB or 1000000" if whole is None else "3G, 512MiB or 25%"
    return UsageError(
        "not a size", where=option, expected=f"a size such as {examples}", got=repr(text)
    )
