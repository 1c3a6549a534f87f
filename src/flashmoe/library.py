"""The models directory: packs and checkpoints that were pulled, by name.

    <data directory>/models/NAME          a packed model
    <data directory>/checkpoints/NAME     as it was published: a checkpoint, or a pack
    .../NAME.origin.json                  where it came from
    .../NAME.download, NAME.partial       unfinished; the same `flashmoe pull` goes on

Nothing outside of these two folders is ever removed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from flashmoe.errors import FlashMoeError, StorageError, UsageError
from flashmoe.files import read_small, storage_errors
from flashmoe.settings import data_directory
from flashmoe.strict_json import Fields, parse

Kind = Literal["pack", "checkpoint", "unfinished"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FOLDERS: dict[str, Kind] = {"models": "pack", "checkpoints": "checkpoint"}
DOWNLOAD, PARTIAL, ORIGIN = ".download", ".partial", ".origin.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_ORIGIN = 64 << 10
# store.format.MANIFEST, which lies above this module.
_MANIFEST = "flashmoe.json"


@dataclass(frozen=True)
class Origin:
    """Where a model came from. options: how it was packed, "" for a checkpoint as published."""

    repo: str
    revision: str
    commit: str
    options: str = ""

    def to_json(self) -> str:
        """The text of NAME.origin.json."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, data: bytes, where: object, error: type[FlashMoeError]) -> Origin:
        """Raises `error` if the text is not what to_json wrote."""
        fields = Fields(parse(data, where, error), str(where), error)
        origin = cls(*(fields.text(key) for key in ("repo", "revision", "commit")))
        origin = dataclasses.replace(origin, options=fields.string("options"))
        fields.end()
        return origin


@dataclass(frozen=True)
class Entry:
    """Something in the models directory. origin: None where it was put there by hand."""

    name: str
    kind: Kind
    path: Path
    origin: Origin | None

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        origin = None if self.origin is None else dataclasses.asdict(self.origin)
        facts = {"name": self.name, "kind": self.kind, "path": str(self.path)}
        return {**facts, "bytes": self.nbytes(), "origin": origin}

    def nbytes(self) -> int:
        """What its files take on the disk; holes of unfinished ones do not count."""
        with storage_errors("cannot read", self.path):
            files = [path for path in self.path.rglob("*") if path.is_file()]
            return sum(path.stat().st_blocks * 512 for path in files)


class Library:
    """The models directory; root: another one than the user's."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = data_directory() if root is None else root

    def place(self, name: str, kind: Kind) -> Path:
        """Where a model of this name and kind is, or would be. Raises UsageError."""
        if not _NAME.fullmatch(name) or name.endswith((DOWNLOAD, PARTIAL, ORIGIN)):
            expected = "letters, digits, '.', '_' and '-'"
            raise UsageError("not a model's name", expected=expected, got=repr(name))
        return self.root / ("checkpoints" if kind == "checkpoint" else "models") / name

    def entries(self) -> list[Entry]:
        """Everything, by name. Raises StorageError."""
        found = [entry for folder in FOLDERS for entry in self._in(folder)]
        return sorted(found, key=lambda entry: (entry.name.lower(), entry.kind, entry.path))

    def named(self, name: str) -> list[Entry]:
        """What bears a name: pack, checkpoint, unfinished. Raises UsageError if nothing does."""
        entries = self.entries()
        found = [entry for entry in entries if entry.name == name]
        if not found:
            known = ", ".join(dict.fromkeys(entry.name for entry in entries))
            raise UsageError(
                "no such model", where=self.root, expected=known or "a pulled model", got=name
            )
        return found

    def remove(self, entry: Entry) -> None:
        """Deletes an entry and the record of its origin. Raises StorageError."""
        assert entry.path.parent in [self.root / folder for folder in FOLDERS]
        with storage_errors("cannot delete", entry.path):
            if entry.path.is_symlink():
                entry.path.unlink()  # somebody else's files stay
            else:
                shutil.rmtree(entry.path)
            if entry.kind != "unfinished":
                origin_file(entry.path).unlink(missing_ok=True)

    def _in(self, folder: str) -> Iterator[Entry]:
        path = self.root / folder
        with storage_errors("cannot read", path):
            members = sorted(path.iterdir()) if path.is_dir() else []
        for member in members:
            if member.is_dir():
                yield _entry(member, FOLDERS[folder])


def _entry(path: Path, kind: Kind) -> Entry:
    for ending in (DOWNLOAD, PARTIAL):
        if path.name.endswith(ending):
            return Entry(path.name.removesuffix(ending), "unfinished", path, None)
    is_pack = (path / _MANIFEST).exists()  # somebody may have published one
    return Entry(path.name, "pack" if is_pack else kind, path, read_origin(path))


def origin_file(path: Path) -> Path:
    """The record of where the model at `path` came from."""
    return path.with_name(path.name + ORIGIN)


def read_origin(path: Path) -> Origin | None:
    """Where the model at `path` came from; None if that is not recorded. Raises StorageError."""
    file = origin_file(path)
    if not file.exists():
        return None
    data = read_small(file, _MAX_ORIGIN, StorageError)
    try:
        return Origin.from_json(data, file, StorageError)
    except StorageError as error:
        hint = "Delete this file: the model itself does not need it"
        raise StorageError(
            error.what, where=error.where, expected=error.expected, got=error.got, hint=hint
        ) from error


def find_model(given: str | Path) -> Path:
    """A directory as it is given, or the pulled model of that name; packs before checkpoints.

    What is neither is returned unchanged: whoever opens it has the better error.
    """
    path = Path(given)
    if not _NAME.fullmatch(str(given)) or os.path.lexists(path):
        return path
    library = Library()
    places = (library.root / folder / str(given) for folder in FOLDERS)
    return next((place for place in places if place.is_dir()), path)
