"""The rate of a disk where no model lies yet: on a new file, deleted again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from flashmoe.bench.disk import Case, measure, supports_direct
from flashmoe.files import storage_errors
from flashmoe.settings import DEFAULT_READERS

PROBE_BYTES = 128 << 20


def probe_disk(place: Path, block_bytes: int) -> tuple[bool, float]:
    """Whether O_DIRECT works, and bytes per second in random reads of so many bytes.

    place: an existing directory. Raises StorageError.
    """
    with (
        storage_errors("cannot be written", place),
        tempfile.NamedTemporaryFile(dir=place, prefix=".flashmoe-probe-") as file,
    ):
        piece = os.urandom(1 << 20)
        for _ in range(PROBE_BYTES >> 20):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        path = Path(file.name)
        direct = supports_direct(path)
        result = measure(path, Case(block_bytes, DEFAULT_READERS, direct, huge_pages=True), 1.0)
        return direct, result.nbytes / result.seconds
