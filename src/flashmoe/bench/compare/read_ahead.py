"""The read-ahead of a disk while the peer runs, put back afterwards whatever happens.

What it was is noted in /run, which lasts as long as the setting does: until the machine restarts.
A comparison that was killed leaves its note behind, and the next one puts the value back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flashmoe.errors import StorageError
from flashmoe.files import storage_errors

USUAL_READ_AHEAD_KB: Final = 128
_NOTES: Final = Path("run/flashmoe")


def read_ahead_file(path: Path, root: Path = Path("/")) -> Path | None:
    """The setting of the disk that path lies on; None if it has none that can be written."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    block = (root / "sys/dev/block" / number).resolve()
    for folder in (block, block.parent):  # a partition shares the queue of its disk
        file = folder / "queue/read_ahead_kb"
        if os.access(file, os.W_OK):
            return file
    return None


@contextmanager
def read_ahead(
    file: Path | None, kilobytes: int = USUAL_READ_AHEAD_KB, root: Path = Path("/")
) -> Iterator[None]:
    """Set the read-ahead of a disk, and put the old value back; None: leave it alone.

    root: where /run is (for tests). Raises StorageError.
    """
    if file is None:
        yield
        return
    note = _note(file, root)
    with storage_errors("cannot be noted", note):
        note.parent.mkdir(parents=True, exist_ok=True)
        _write(note, file.read_text())
    file.write_text(str(kilobytes))
    try:
        yield
    finally:
        put_back_read_ahead(file, root)


def put_back_read_ahead(file: Path, root: Path = Path("/")) -> int | None:
    """Put a noted value back -> KB; None if there is no note. Raises StorageError."""
    note = _note(file, root)
    with storage_errors("cannot be put back", file):
        if not note.exists():
            return None
        text = note.read_text()
        if not text.strip().isdigit():
            raise StorageError("is no size in KB", where=note, got=repr(text[:40]))
        file.write_text(text)
        note.unlink()
    return int(text)


def found_read_ahead(file: Path | None, root: Path = Path("/")) -> str:
    """What the disk is set to, for people, after putting back what a killed run left."""
    if file is None:
        return "the disk's read-ahead cannot be set: llama.cpp runs with what is there"
    found = int(file.read_text())
    before = put_back_read_ahead(file, root)
    usual = f"{USUAL_READ_AHEAD_KB} KB while llama.cpp runs"
    if before is None:
        return f"the disk's read-ahead is {found} KB; {usual}"
    return (
        f"a comparison that was killed had left the disk's read-ahead at {found} KB: put back to"
        f" {before} KB; {usual}"
    )


def _note(file: Path, root: Path) -> Path:
    """Where the value of <disk>/queue/read_ahead_kb is kept."""
    return root / _NOTES / f"read-ahead-of-{file.parent.parent.name}"


def _write(note: Path, text: str) -> None:
    """Whole or not at all."""
    draft = note.with_suffix(".new")
    draft.write_text(text)
    draft.rename(note)
