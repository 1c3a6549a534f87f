"""The two engines and the requests they get: equal but for each engine's own settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flashmoe.bench.apart import drop_from_page_cache
from flashmoe.bench.compare.child import Program, Progress
from flashmoe.bench.compare.read_ahead import read_ahead, read_ahead_file
from flashmoe.bench.compare.rows import PROMPT_TOKENS, Row, Run
from flashmoe.bench.compare.surroundings import MemoryGroup, memory_group
from flashmoe.bench.stretch import random_ids

CONTEXT_LENGTH: Final = 1024
# Prompts that bring every expert into memory; a few experts may be missed by the first.
_FILL_PROMPTS: Final = 4
_OURS: Final = Program("flashmoe", [sys.executable, "-m", "flashmoe.bench.compare.ours"])


@dataclass(frozen=True)
class Engine:
    """An engine and its model.

    usual_read_ahead: run with the kernel's usual read-ahead. Some disks come with a longer one,
    that reads far more than a page fault asks for.
    """

    program: Program
    model: Path
    files: Sequence[Path]
    threads: int
    usual_read_ahead: bool = False

    def run(self, row: Row, request: dict[str, Any], limit: int | None, progress: Progress) -> Run:
        """One run of a row in a process of its own, in a group of `limit` bytes if there is one.

        request: from make_request.
        """
        request = {**request, "model": str(self.model), "threads": self.threads}
        with self._surroundings(row, limit) as group:
            run = self.program.call("run", request, progress, group)
            peak = None if group is None else group.peak_bytes()
        # The group's figure counts the page cache that the engine lives on.
        return {**run, "peak_bytes": peak or run["peak_bytes"], "settings": request["settings"]}

    @contextmanager
    def _surroundings(self, row: Row, limit: int | None) -> Iterator[MemoryGroup | None]:
        with ExitStack() as stack:
            if not row.in_memory:
                drop_from_page_cache(self.files)
            if self.usual_read_ahead:
                stack.enter_context(read_ahead(read_ahead_file(self.model)))
            yield None if limit is None else stack.enter_context(memory_group(limit))


def our_engine(pack: Path, files: Sequence[Path], threads: int) -> Engine:
    """flashmoe on a pack."""
    return Engine(_OURS, pack, files, threads)


def peer_engine(program: Program, gguf: Path, threads: int) -> Engine:
    """llama.cpp on a GGUF file."""
    return Engine(program, gguf, [gguf], threads, usual_read_ahead=True)


def our_settings(row: Row) -> dict[str, Any]:
    """Ours need no trials: everything in memory, or what the limit leaves."""
    return {"cache": "all" if row.in_memory else "auto"}


def make_request(row: Row, settings: dict[str, Any], vocab_size: int, seed: int) -> dict[str, Any]:
    """What an engine gets for a row: its own settings; else the same as the other, seeded ids."""
    count = row.warm_up + row.tokens
    ids = random_ids(vocab_size, count, seed)
    fills = range(_FILL_PROMPTS if row.in_memory else 0)
    return {
        "kind": row.kind,
        "settings": settings,
        "context_length": CONTEXT_LENGTH,
        "fill": [random_ids(vocab_size, PROMPT_TOKENS, seed + 1000 + n) for n in fills],
        "warm_up": ids[: row.warm_up],
        "ids": ids[row.warm_up :],
    }
