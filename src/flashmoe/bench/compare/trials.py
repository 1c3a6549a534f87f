"""The peer's best settings, found by trying: in memory, as under a limit the disk decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from flashmoe.bench.compare.rows import Kind, Row, Run, tokens_per_second

Settings = dict[str, Any]
TryOut = Callable[[Row, Settings], Run]

# mmap: weights stay in the mapped file. read: in memory of its own. repack: there, in the layout
# of its fastest kernels.
_MEMORY: Final = ("mmap", "read", "repack")
_TOKENS: Final[dict[Kind, int]] = {"decode": 24, "prefill": 512}


class Trials:
    """Trial runs of the peer, made when a row first needs them."""

    def __init__(self, try_out: TryOut) -> None:
        self._try_out = try_out
        self._tried: dict[Kind, dict[tuple[str, bool], float]] = {}

    def best(self, row: Row) -> Settings:
        """The fastest settings for a row. Under a limit only mapped files can be let go."""
        if row.kind not in self._tried:
            self._tried[row.kind] = self._try(row)
        rates = self._tried[row.kind]
        memory, _ = max(rates, key=rates.__getitem__)
        # Flash attention was tried with the fastest kind of memory; what it gains carries over.
        flash = rates[memory, True] >= rates[memory, False]
        return {"memory": memory if row.in_memory else "mmap", "flash_attention": flash}

    def rows(self) -> list[dict[str, Any]]:
        """What was tried, for the record."""
        return [
            {"kind": kind, "memory": m, "flash_attention": flash, "tokens_per_second": rate}
            for kind, rates in self._tried.items()
            for (m, flash), rate in rates.items()
        ]

    def _try(self, row: Row) -> dict[tuple[str, bool], float]:
        trial = replace(row, share=None, tokens=_TOKENS[row.kind], warm_up=8)
        rates = {(memory, True): self._rate(trial, memory, True) for memory in _MEMORY}
        fastest, _ = max(rates, key=rates.__getitem__)
        rates[fastest, False] = self._rate(trial, fastest, False)
        return rates

    def _rate(self, row: Row, memory: str, flash: bool) -> float:
        return tokens_per_second(self._try_out(row, {"memory": memory, "flash_attention": flash}))
