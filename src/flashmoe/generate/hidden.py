"""Hidden states of many tokens between two layers, in files: memory does not grow with the tokens.

Two files take turns: a layer reads one and writes the other, so that a sweep that broke off in the
middle of a layer goes on at that layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import numpy as np

from flashmoe.files import read_exactly, storage_errors, sync, write_exactly
from flashmoe.ops.base import Floats

_STATE: Final = "sweep.json"


class HiddenStates:
    """float32 [tokens, hidden] after `done` layers (0: the embedding), in a directory.

    key: what decides every bit of them; files of another key are not gone on with. -1 done: not
    even the embedding is there. Raises StorageError.
    """

    def __init__(self, directory: Path, tokens: int, hidden: int, key: str) -> None:
        self._directory, self._hidden, self._key = directory, hidden, key
        self._shape = [tokens, hidden]
        with storage_errors("cannot write", directory):
            directory.mkdir(parents=True, exist_ok=True)
        self.done = self._found()
        with storage_errors("cannot write", directory):
            self._files = [_opened(directory / f"hidden-{n}.f32") for n in range(2)]

    def read(self, begin: int, end: int) -> Floats:
        """Rows begin..end after `done` layers, a copy."""
        rows = np.empty((end - begin, self._hidden), dtype=np.float32)
        file = self._files[self.done % 2]
        read_exactly(file.fileno(), self._bytes(rows), 4 * begin * self._hidden, file.name)
        return rows

    def write(self, begin: int, rows: Floats) -> None:
        """Rows begin... after one layer more; `advance` makes them those that are read."""
        file, data = self._files[(self.done + 1) % 2], self._bytes(np.ascontiguousarray(rows))
        write_exactly(file.fileno(), data, 4 * begin * self._hidden, file.name)

    def advance(self) -> None:
        """All rows of the next layer are written: go on from there, also in a later process."""
        sync(self._files[(self.done + 1) % 2].fileno(), self._directory)
        self.done += 1
        state = {"key": self._key, "shape": self._shape, "done": self.done}
        path = self._directory / _STATE
        fresh = path.with_suffix(".new")
        with storage_errors("cannot write", path):
            fresh.write_text(json.dumps(state))
            fresh.replace(path)

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _found(self) -> int:
        path = self._directory / _STATE
        if not path.exists():
            return -1
        with storage_errors("cannot read", path):
            text = path.read_text()
        try:
            state = json.loads(text)
            same = (state["key"], state["shape"]) == (self._key, self._shape)
            return int(state["done"]) if same else -1
        except (ValueError, KeyError, TypeError):
            return -1  # not ours, or torn: the sweep begins afresh

    @staticmethod
    def _bytes(rows: Floats) -> memoryview:
        return rows.reshape(-1).view(np.uint8).data


def _opened(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b", buffering=0)
