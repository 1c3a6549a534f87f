"""File access whose every failure is a typed error that names the file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from flashmoe.errors import FlashMoeError, StorageError


@contextlib.contextmanager
def storage_errors(what: str, where: object) -> Iterator[None]:
    """Turns an OSError of the block into a StorageError."""
    try:
        yield
    except OSError as cause:
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "Free some disk space and run the same command again" if full else None
        raise StorageError(
            what, where=where, got=cause.strerror or str(cause), hint=hint
        ) from cause


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The file opened for reading -> descriptor."""
    with storage_errors("cannot open", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_small(path: Path, limit: int, error: type[FlashMoeError]) -> bytes:
    """The whole file, refused with `error` above `limit` bytes."""
    with storage_errors("cannot read", path), path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise error("file is too large", where=path, expected=f"at most {limit} bytes")
    return data


def read_exactly(fd: int, view: memoryview, offset: int, where: object) -> None:
    """Fills view with the bytes at offset; a shorter file is a StorageError."""
    done = 0
    while done < len(view):
        with storage_errors("cannot read", where):
            got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise StorageError(
                "file ends too early",
                where=where,
                expected=f"{len(view)} bytes at {offset}",
                got=done,
            )
        done += got


def write_exactly(fd: int, view: memoryview, offset: int, where: object) -> None:
    """Writes all of view at offset."""
    done = 0
    while done < len(view):
        with storage_errors("cannot write", where):
            done += os.pwrite(fd, view[done:], offset + done)


def sync(fd: int, where: object) -> None:
    """Returns when the file's data is on the disk."""
    with storage_errors("cannot write", where):
        os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Returns when the names in the directory are on the disk."""
    with opened(path) as fd, storage_errors("cannot write", path):
        os.fsync(fd)
