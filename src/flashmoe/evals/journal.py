"""Rows of an evaluation that are done, kept so that a run that was broken off goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import flashmoe
from flashmoe.errors import UsageError
from flashmoe.files import storage_errors

Row = dict[str, Any]


@dataclass
class Journal:
    """JSON lines {"key", "row"} in a file; path None: nothing is kept.

    A last line without its end was being written when a run broke off: it is not there. Raises
    UsageError for a file that is no journal, StorageError.
    """

    path: Path | None
    _rows: dict[str, Row] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            with storage_errors("cannot read", self.path):
                text = self.path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            for number, line in enumerate(whole.splitlines(), 1):
                key, row = _entry(line, f"{self.path}, line {number}")
                self._rows[key] = row
            if whole != text:
                with storage_errors("cannot write", self.path):
                    self.path.write_text(whole, encoding="utf-8")

    def find(self, key: str) -> Row | None:
        """The row that was added last under this key."""
        return self._rows.get(key)

    def add(self, key: str, row: Row) -> Row:
        """Keep a row; it is in the file when this returns."""
        self._rows[key] = row
        if self.path is not None:
            with storage_errors("cannot write", self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"key": key, "row": row}, allow_nan=False) + "\n")
        return row


def key_of(*parts: object) -> str:
    """A key of what decides a row; parts: what JSON can hold, paths as text."""
    text = json.dumps([flashmoe.__version__, *parts], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


def digest(path: Path | None) -> str:
    """SHA-256 of a file, in hex; "" for None. Raises UsageError where it cannot be read."""
    if path is None:
        return ""
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError("cannot read", where=path, got=error.strerror) from error


def _entry(line: str, where: str) -> tuple[str, Row]:
    try:
        entry = json.loads(line)
        return str(entry["key"]), dict(entry["row"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("not a journal", where=where, expected='{"key", "row"}') from error
