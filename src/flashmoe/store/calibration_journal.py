"""The journal of an unfinished calibration: the documents that the model wrote, the windows run.

Text lines of JSON: {"key": what decides every byte}, then {"wrote": token ids} per document and
{"ran": windows} after their inputs were synced. A torn last line is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flashmoe.errors import CheckpointError, UsageError
from flashmoe.files import storage_errors, sync, write_exactly
from flashmoe.strict_json import Fields, parse


class CalibrationJournal:
    """An open, exclusively locked journal. `wrote`: documents; `ran`: windows that are on disk.

    Raises:
        UsageError: another process holds it, or it is of other texts, options or another model.
        CheckpointError: it is damaged.
        StorageError: it cannot be read or written.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.wrote: list[list[int]] = []
        self.ran = 0
        with storage_errors("cannot open the journal", path):
            self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._load(key)
        except BaseException:
            self._file.close()
            raise

    def add_document(self, ids: list[int]) -> None:
        """The model wrote a document; the line is on disk when this returns."""
        self._append({"wrote": ids})
        self.wrote.append(ids)

    def set_ran(self, windows: int) -> None:
        """So many windows' inputs were synced."""
        self._append({"ran": windows})
        self.ran = windows

    def finish(self) -> None:
        """The calibration is complete: the journal goes."""
        with storage_errors("cannot remove", self.path):
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise UsageError("another calibration is running", where=self.path) from cause

    def _load(self, key: str) -> None:
        self._file.seek(0)
        lines = self._file.read().rpartition(b"\n")
        self._file.truncate(len(lines[0]) + len(lines[1]))
        entries = [self._fields(line) for line in lines[0].splitlines()]
        if not entries:
            self._append({"key": key})
            return
        self._check_key(entries[0].text("key"), key)
        for entry in entries[1:]:
            self._take(entry)

    def _take(self, entry: Fields) -> None:
        if entry.has("wrote"):
            self.wrote.append(list(entry.integers("wrote")))
        else:
            self.ran = entry.integer("ran")

    def _check_key(self, got: str, key: str) -> None:
        if got != key:
            raise UsageError(
                "an unfinished calibration with other texts or options is in the way",
                where=self.path,
                hint="Delete that file to start afresh",
            )

    def _fields(self, line: bytes) -> Fields:
        return Fields(parse(line, self.path, CheckpointError), str(self.path), CheckpointError)

    def _append(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry) + "\n"
        end = self._file.seek(0, os.SEEK_END)
        write_exactly(self._file.fileno(), memoryview(text.encode("ascii")), end, self.path)
        sync(self._file.fileno(), self.path)
