"""A directory of tagged records: every byte of a record tells whose it is."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flashmoe._native import Arena, crc32c
from flashmoe.experts.cache import ExpertCache
from flashmoe.experts.source import Extent
from flashmoe.experts.ticket import Ticket

RECORD = 8192
HEADER = 4096


@dataclass(frozen=True)
class TaggedSource:
    """An ExpertSource of random records: one file per layer, records after a header."""

    folder: Path
    layers: int
    experts: int

    def path(self, layer: int) -> Path:
        return self.folder / f"experts-{layer:03d}"

    @property
    def num_experts(self) -> int:
        return self.experts

    @property
    def files(self) -> Sequence[Path]:
        return [self.path(layer) for layer in range(self.layers)]

    def record(self, layer: int, expert: int) -> bytes:
        return np.random.default_rng([layer, expert]).bytes(RECORD)

    def offset(self, expert: int) -> int:
        return HEADER + expert * RECORD

    def extent(self, layer: int, expert: int) -> Extent:
        crc = crc32c(self.record(layer, expert))
        return Extent(self.path(layer), self.offset(expert), RECORD, crc)

    def write(self) -> TaggedSource:
        for layer in range(self.layers):
            records = [self.record(layer, expert) for expert in range(self.experts)]
            self.path(layer).write_bytes(bytes(HEADER) + b"".join(records))
        return self


def arena(slots: int) -> Arena:
    return Arena(slots * RECORD, huge_pages=False)


def consume(ticket: Ticket, count: int) -> list[bytes]:
    """The bytes of every expert of a ticket, in the order of its ids."""
    got: dict[int, bytes] = {}
    with ticket:
        for group in ticket.batches():
            for index, address in group:
                assert index not in got
                got[index] = ctypes.string_at(address, RECORD)
    return [got[index] for index in range(count)]


def run(cache: ExpertCache, trace: Sequence[tuple[int, list[int]]]) -> list[list[bytes]]:
    """What every (layer, ids) of a trace is served."""
    return [consume(cache.begin(layer, ids), len(ids)) for layer, ids in trace]
