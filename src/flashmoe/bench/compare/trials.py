"""The peer's best settings, found by trying: in memory, as under a limit the disk decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from flashmoe.bench.compare.rows import Kind, Row, Run, tokens_per_second

Settings = dict[str, Any]
TryOut = Callable[[Row, Settings], Run]
Trial = tuple[Settings, float]
"""Settings, and the tokens per second that they gave."""

# mmap: weights stay in the mapped file. read: in memory of its own. repack: there, in the layout
# of its fastest kernels. micro_batch: tokens of a prompt that go through a layer together.
USUAL: Final[Settings] = {"memory": "mmap", "flash_attention": True, "micro_batch": 512}
# One setting after another, the best so far kept: (setting, other values).
_STEPS: Final[dict[Kind, list[tuple[str, tuple[Any, ...]]]]] = {
    "decode": [("memory", ("read", "repack")), ("flash_attention", (False,))],
    "prefill": [
        ("memory", ("read", "repack")),
        ("flash_attention", (False,)),
        ("micro_batch", (256, 128)),
    ],
}
_TOKENS: Final[dict[Kind, int]] = {"decode": 24, "prefill": 512}


class Trials:
    """Trial runs of the peer, made when a row first needs them."""

    def __init__(self, try_out: TryOut) -> None:
        self._try_out = try_out
        self._tried: dict[Kind, list[Trial]] = {}

    def best(self, row: Row) -> Settings:
        """The fastest settings for a row.

        Under a limit only mapped files can be let go, and a prompt goes through a layer at once:
        each further piece of it would read the experts anew. Flash attention is as in memory.
        """
        if row.kind not in self._tried:
            self._tried[row.kind] = self._try(row)
        best = _fastest(self._tried[row.kind])
        if row.in_memory:
            return best
        return {**USUAL, "flash_attention": best["flash_attention"]}

    @staticmethod
    def count(kind: Kind) -> int:
        """How many trials rows of a kind take."""
        return 1 + sum(len(values) for _, values in _STEPS[kind])

    def rows(self) -> list[dict[str, Any]]:
        """What was tried, for the record."""
        return [
            {"kind": kind, **settings, "tokens_per_second": rate}
            for kind, tried in self._tried.items()
            for settings, rate in tried
        ]

    def _try(self, row: Row) -> list[Trial]:
        trial = replace(row, share=None, tokens=_TOKENS[row.kind], warm_up=8)
        tried = [self._run(trial, USUAL)]
        for name, values in _STEPS[row.kind]:
            best = _fastest(tried)
            tried += [self._run(trial, {**best, name: value}) for value in values]
        return tried

    def _run(self, row: Row, settings: Settings) -> Trial:
        return settings, tokens_per_second(self._try_out(row, settings))


def _fastest(tried: Iterable[Trial]) -> Settings:
    settings, _ = max(tried, key=lambda trial: trial[1])
    return settings
