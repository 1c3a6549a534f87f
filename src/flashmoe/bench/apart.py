"""Cold starts: work in a process of its own, on files that the page cache does not hold."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from flashmoe.errors import FlashMoeError
from flashmoe.files import storage_errors
from flashmoe.store.model import open_model

T = TypeVar("T")
Progress = Callable[[str], None]


def run_cold(
    path: Path, work: Callable[..., T], arguments: tuple[Any, ...], progress: Progress
) -> T:
    """work(path, *arguments, progress) on a pack, as if nothing had touched it before.

    A new process, an empty expert cache, and none of the pack's pages in the page cache. work,
    arguments and result go through pickle. Raises what work raises as a FlashMoeError, or
    FlashMoeError if the process was killed.
    """
    pack = open_model(path)
    drop_from_page_cache(pack.data_files)
    return run_apart(path, work, arguments, progress)


def run_apart(
    path: Path, work: Callable[..., T], arguments: tuple[Any, ...], progress: Progress
) -> T:
    """As run_cold, but the page cache is left as it is."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, work, (path, *arguments)))
    process.start()
    sender.close()
    try:
        result: T = _receive(receiver, progress)
        return result
    except EOFError:
        process.join()
        what, hint = "the process of a cold run was killed", "Out of memory?"
        raise FlashMoeError(what, got=f"exit status {process.exitcode}", hint=hint) from None
    finally:
        receiver.close()
        process.terminate()  # still there only after an interrupt
        process.join()


def _serve(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    def progress(text: str) -> None:
        sender.send(("progress", text))

    try:
        sender.send(("result", work(*arguments, progress)))
    except FlashMoeError as error:
        sender.send(("error", error))
    except KeyboardInterrupt:
        pass  # the terminal interrupted both: the parent process says so


def _receive(receiver: Connection, progress: Progress) -> Any:
    while True:
        event, value = receiver.recv()
        if event == "progress":
            progress(value)
        elif event == "error":
            raise value
        else:
            return value


def drop_from_page_cache(files: Iterable[Path]) -> None:
    """Make the next reads of files reach the disk. Raises StorageError."""
    for path in files:
        with storage_errors("cannot be dropped from the page cache", path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)  # pages that are not written yet would stay
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
