"""Rates of this machine for a model: recorded, measured now, or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flashmoe.bench.machine import machine_facts
from flashmoe.bench.probe import probe_disk
from flashmoe.bench.rates import RateMeter, memory_rate
from flashmoe.errors import UsageError
from flashmoe.forecast import recorded
from flashmoe.forecast.figures import Origin
from flashmoe.forecast.model import Rates
from flashmoe.library import Library
from flashmoe.ops.threads import default_threads
from flashmoe.settings import DEFAULT_READERS
from flashmoe.store.model import StoredModel

SOURCES: Final = ("auto", "measure", "assume")
ASSUMED_DISK: Final = 2e9
ASSUMED_MEMORY: Final = 20e9
"""An SSD behind PCIe 3.0 and two channels of memory: what an older laptop has."""


@dataclass(frozen=True)
class Known:
    """A rate in bytes per second, and where it is from. note: for people, as a day; "" for none."""

    value: float
    origin: Origin
    note: str = ""


@dataclass(frozen=True)
class MachineRates:
    """What decode depends on."""

    disk: Known
    memory: Known
    cores: int

    @property
    def rates(self) -> Rates:
        """The values alone."""
        return Rates(self.disk.value, self.memory.value, self.cores)


def machine_rates(pack: StoredModel, is_here: bool, source: str) -> MachineRates:
    """Of the disk that a model's files are on, or would be on.

    is_here: whether the files are there to be read. source: "auto": recorded where there is such a
    line, else measured for a second each; "measure"; "assume": nothing is read or written.

    Raises UsageError, StorageError.
    """
    if source not in SOURCES:
        raise UsageError("unknown", where="--rates", expected=" | ".join(SOURCES), got=source)
    cores = default_threads()
    if source == "assume":
        return MachineRates(Known(ASSUMED_DISK, "assumed"), Known(ASSUMED_MEMORY, "assumed"), cores)
    record, place = pack.manifest.experts.record_bytes, _place(pack, is_here)
    rows = recorded.recorded_rows(recorded.record_folders(Path.cwd())) if source == "auto" else []
    machine = machine_facts(place)
    disk = recorded.disk_rate(rows, machine, record)
    memory = recorded.memory_rate(rows, machine)
    return MachineRates(
        _known(disk, "this disk") or Known(_measured_disk(pack, is_here, place), "measured"),
        _known(memory, "this machine") or Known(memory_rate(cores, 0.5), "measured"),
        cores,
    )


def _known(found: recorded.Found | None, where: str) -> Known | None:
    return None if found is None else Known(found.value, "recorded", f"{found.day} on {where}")


def _measured_disk(pack: StoredModel, is_here: bool, place: Path) -> float:
    """On the model's own files, or on a new file where they would lie."""
    record, threads = pack.manifest.experts.record_bytes, default_threads()
    if not is_here:
        return probe_disk(place, record)[1]
    files: Sequence[Path] = sorted(set(pack.files))
    return RateMeter(files, record, DEFAULT_READERS, threads).disk()


def _place(pack: StoredModel, is_here: bool) -> Path:
    """The nearest directory that exists to where the files are, or would be."""
    root = pack.path if is_here else Library().root
    return next(path for path in (root, *root.parents) if path.is_dir())
