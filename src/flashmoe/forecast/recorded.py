"""Rates that `flashmoe bench` recorded on this machine: of its disk, its memory, its cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flashmoe.bench.record import RESULTS, checkout
from flashmoe.bench.report import read_rows
from flashmoe.forecast.card import CardRates
from flashmoe.settings import data_directory

Row = Mapping[str, Any]
# The rate of a disk depends on the size of a read: one of another size, beyond this factor, says
# nothing.
_SIZES_APART: Final = 2.0
# Physical memory as the kernel tells it differs a little from boot to boot.
_MEMORY_APART: Final = 0.02


@dataclass(frozen=True)
class Found:
    """A rate in bytes per second and the day on which it was measured, as 2026-11-23."""

    value: float
    day: str


def record_folders(start: Path) -> list[Path]:
    """Where recorded lines may be: the checkout of flashmoe around `start`, the data directory."""
    folder = checkout(start)
    ours = [] if folder is None else [folder / RESULTS]
    return [*ours, data_directory() / "bench"]


def recorded_rows(folders: Iterable[Path]) -> list[Row]:
    """All lines of these folders, oldest first. Raises UsageError, StorageError."""
    filled = [folder for folder in folders if any(folder.glob("*.jsonl"))]
    rows = [row for folder in filled for found in read_rows(folder).values() for row in found]
    return sorted(rows, key=lambda row: str(row.get("time")))


def disk_rate(rows: Iterable[Row], machine: Row, block: int) -> Found | None:
    """The latest rate of the disk that `machine` names, in reads of about `block` bytes."""
    return _latest(rows, machine, lambda row: _disk(row, block), same_disk=True)


def memory_rate(rows: Iterable[Row], machine: Row) -> Found | None:
    """The latest rate at which all threads of this machine read memory."""
    return _latest(rows, machine, lambda row: _at(row, "figures", "rates", "memory_bytes_per_s"))


def card_rates(rows: Iterable[Row], name: str) -> tuple[CardRates, str] | None:
    """The latest rates of a card of that name, and the day; whatever machine it was in."""
    for row in reversed(list(rows)):
        rates = _at(row, "figures", "rates") or {}
        copy, bus = rates.get("copy_bytes_per_s"), rates.get("host_to_card_bytes_per_s")
        if rates.get("card") == name and copy and bus:
            return CardRates(copy, bus), _day(row)
    return None


def _latest(
    rows: Iterable[Row],
    machine: Row,
    rate: Callable[[Row], float | None],
    same_disk: bool = False,
) -> Found | None:
    for row in reversed(list(rows)):
        if _same_machine(row.get("machine"), machine, same_disk) and (value := rate(row)):
            return Found(value, _day(row))
    return None


def _same_machine(recorded: Row | None, machine: Row, same_disk: bool) -> bool:
    if recorded is None or any(recorded.get(key) != machine[key] for key in ("cpu", "cores")):
        return False
    was, now = recorded.get("memory_bytes") or 0, machine["memory_bytes"]
    if abs(was - now) > _MEMORY_APART * now:
        return False
    return not same_disk or recorded.get("disk") == machine["disk"]


def _disk(row: Row, block: int) -> float | None:
    """Of a line of any verb that measured the disk in reads of about that size."""
    rates = _at(row, "figures", "rates") or {}
    found = [(rates.get("block_bytes"), rates.get("disk_bytes_per_s")), *_cases(row)]
    near = [(size, rate) for size, rate in found if size and rate and _near(size, block)]
    return max((rate for _, rate in near), default=None)


def _cases(row: Row) -> Iterator[tuple[int, float]]:
    """Sizes and rates of `bench disk`, past the page cache."""
    for case in _at(row, "figures", "cases") or ():
        if isinstance(case, dict) and case.get("direct"):
            yield case.get("block_bytes", 0), case.get("bytes_per_s", 0.0)


def _near(size: int, block: int) -> bool:
    return block / _SIZES_APART <= size <= block * _SIZES_APART


def _at(row: Row, *keys: str) -> Any:
    """What lies there, None where a key is missing."""
    found: Any = row
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _day(row: Row) -> str:
    return str(row.get("time"))[:10]
