"""The journal of an unfinished pack: which items are safely on disk, with their checksums.

Text lines of JSON: first {"plan": fingerprint}, then {"item": key, "crc32c": n}. A line is appended
after its item was synced, so whatever it names survives a crash; a torn last line is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection
from pathlib import Path

from flashmoe.errors import PackError, UsageError
from flashmoe.files import storage_errors, sync, write_exactly
from flashmoe.strict_json import Fields, parse


class Journal:
    """An open, exclusively locked journal. `done`: CRC-32C by item key, as found when opened.

    Raises:
        UsageError: another process holds it, or it belongs to another plan.
        PackError: it is damaged.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path = path
        with storage_errors("cannot open the journal", path):
            self._file = path.open("a+b", buffering=0)
        self._fingerprint = fingerprint
        try:
            self._lock()
            self.done = self._load(fingerprint)
        except BaseException:
            self._file.close()
            raise

    def append(self, items: dict[str, int]) -> None:
        """Records items whose data was synced; returns when the journal was, too."""
        self._write([{"item": key, "crc32c": crc} for key, crc in items.items()])

    def forget(self, keys: Collection[str]) -> None:
        """Drops items whose data is gone; returns when no later run can take them for done.

        A crash in between loses other items too: their work is done again.
        """
        lost = self.done.keys() & set(keys)
        if not lost:
            return
        self.done = {key: crc for key, crc in self.done.items() if key not in lost}
        with storage_errors("cannot write", self._path):
            self._file.truncate(0)
        self._write([{"plan": self._fingerprint}])
        self.append(self.done)

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise UsageError("another pack is running", where=self._path.parent) from cause

    def _load(self, fingerprint: str) -> dict[str, int]:
        self._file.seek(0)
        complete = self._file.read().rpartition(b"\n")
        self._file.truncate(len(complete[0]) + len(complete[1]))
        lines = complete[0].splitlines()
        if not lines:
            self._write([{"plan": fingerprint}])
            return {}
        self._check_plan(self._fields(lines[0]), fingerprint)
        entries = [self._fields(line) for line in lines[1:]]
        return {entry.text("item"): entry.integer("crc32c", high=2**32 - 1) for entry in entries}

    def _check_plan(self, fields: Fields, fingerprint: str) -> None:
        if fields.text("plan") != fingerprint:
            raise UsageError(
                "an unfinished pack with other options or of another source is in the way",
                where=self._path.parent,
                hint="Delete that directory to start afresh",
            )

    def _fields(self, line: bytes) -> Fields:
        return Fields(parse(line, self._path, PackError), str(self._path), PackError)

    def _write(self, entries: list[dict[str, object]]) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        end = self._file.seek(0, os.SEEK_END)
        write_exactly(self._file.fileno(), memoryview(text.encode("ascii")), end, self._path)
        sync(self._file.fileno(), self._path)
