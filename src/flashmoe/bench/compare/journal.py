"""What was measured, kept as soon as it is measured: a comparison that is killed can go on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import flashmoe
from flashmoe import _native
from flashmoe.bench.machine import machine_facts
from flashmoe.files import storage_errors

NAME: Final = "measured.jsonl"
Facts = dict[str, Any]


def program_digest() -> str:
    """SHA-256 of the package's modules and native library: a commit says nothing of changes."""
    digest = hashlib.sha256()
    folder = Path(flashmoe.__file__).parent
    native = Path(_native.__file__)
    for file in [*sorted(folder.rglob("*.py")), native]:
        digest.update(str(file.name).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def circumstances(data: Path, **more: Any) -> Facts:
    """What must be equal where figures are put together: machine, program, and `more`."""
    return {"machine": machine_facts(data), "program": program_digest(), **more}


@dataclass
class Journal:
    """A JSON line per finished measurement: `circumstances`, `what` it was, its `value`, and
    `session`, when the command began that made it.

    resume: use lines of earlier commands whose circumstances are the same. One command at a time
    (surroundings.alone).
    """

    file: Path
    circumstances: Facts
    resume: bool
    session: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds")
    )
    sessions: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._found = self._read() if self.resume else []

    def add(self, what: Facts, value: Facts) -> Facts:
        """Write down the value of `what` -> the value."""
        self._append({"what": what, "value": value})
        self.sessions.add(self.session)
        return value

    def find(self, what: Facts) -> Facts | None:
        """The latest value of `what`; None if it has to be measured."""
        for line in reversed(self._found):
            if line["what"] == what:
                self.sessions.add(line["session"])
                value: Facts = line["value"]
                return value
        return None

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        with storage_errors("cannot be read", self.file):
            # A command that is killed while it writes leaves half a line at the end.
            whole = self.file.read_text(encoding="utf-8").split("\n")[:-1]
        lines = [json.loads(line) for line in whole if line]
        return [line for line in lines if line["circumstances"] == self.circumstances]

    def _append(self, line: dict[str, Any]) -> None:
        row = {"session": self.session, "circumstances": self.circumstances, **line}
        with storage_errors("cannot write", self.file), self.file.open("a+b") as stream:
            _drop_half_a_line(stream.fileno())
            stream.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def _drop_half_a_line(fd: int) -> None:
    """Cut the file after its last newline."""
    size = os.fstat(fd).st_size
    end = os.pread(fd, size, 0).rfind(b"\n") + 1
    if end < size:
        os.ftruncate(fd, end)
