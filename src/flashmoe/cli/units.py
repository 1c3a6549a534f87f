"""Numbers for people."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """Decimal units with three significant digits: 999 B, 1.23 kB, 45.6 MB, 789 GB."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def human_count(count: float) -> str:
    """As model names have it: 32.3M, 30.5B, 1.03T."""
    return _scaled(count, ("", "K", "M", "B", "T")).replace(" ", "")


def _scaled(count: float, units: tuple[str, ...]) -> str:
    power = 0
    while count >= 999.5 and power + 1 < len(units):
        count /= 1000
        power += 1
    digits = 0 if power == 0 or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:.{digits}f} {units[power]}"
