"""What passes cost, where one may run inside another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from time import perf_counter


@dataclass(frozen=True)
class Costs:
    """Experts found in memory and read, bytes read, seconds: of passes, or a share of them."""

    hits: float = 0.0
    misses: float = 0.0
    bytes_read: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Costs) -> Costs:
        return self + other * -1

    def __mul__(self, share: float) -> Costs:
        return Costs(*(share * a for a in astuple(self)))


class Meter:
    """Measures passes; what runs inside another counts for itself only.

    read: hits, misses and bytes since the engine was opened.
    """

    def __init__(self, read: Callable[[], Costs]) -> None:
        self._read = read
        self._inside = Costs()
        self.last = Costs()
        """Of the pass that ended last."""

    @contextmanager
    def measured(self) -> Iterator[None]:
        """A pass; `last` is what it cost once the body is over."""
        around, self._inside = self._inside, Costs()
        before, start = self._read(), perf_counter()
        try:
            yield
        finally:
            whole = self._read() - before + Costs(seconds=perf_counter() - start)
            self.last = whole - self._inside
            self._inside = around + whole
