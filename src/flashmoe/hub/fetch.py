"""Downloads files in a given order: over several connections, within a room on the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flashmoe.errors import FlashMoeError, HubError
from flashmoe.files import storage_errors
from flashmoe.hub.partial_file import CHUNK_BYTES, PartialFile
from flashmoe.hub.repo import Hub, Listing, RemoteFile
from flashmoe.hub.transport import Stopped

CONNECTIONS = 8
# A damaged transfer is rare, a damaged original stays damaged.
_TRIES = 2
# Seconds for a thread to see that it is to stop; one that waits for a byte is left behind.
_PATIENCE = 2.0

Arrived = Callable[[int], None]


class _Job:
    """One file on its way: ranges nobody has begun, and how many are under way."""

    def __init__(self, partial: PartialFile) -> None:
        self.partial, self.tries = partial, 0
        self.todo: list[range] = []
        self.active = 0

    def start(self) -> None:
        self.tries += 1
        self.partial.open()
        self.todo = self.partial.missing()


class Fetcher:
    """Threads that fetch files in order; `wait` returns when one is there and verified.

    room: bytes that files may take at once, those of finished ones included until `release`; None:
    no limit. A file larger than what is left waits until others were released.
    arrived: called with the bytes that came, by any thread.
    """

    def __init__(
        self,
        hub: Hub,
        listing: Listing,
        folder: Path,
        room: int | None = None,
        connections: int = CONNECTIONS,
        arrived: Arrived | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._hub, self._listing, self._folder = hub, listing, folder
        self._room, self._arrived, self._chunk = room, arrived, chunk_bytes
        self._connections = connections
        self._changed = threading.Condition()
        self._waiting: list[RemoteFile] = []
        self._jobs: dict[str, _Job] = {}
        self._ready: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._held = 0
        self._failure: FlashMoeError | None = None
        self._closed = False

    def start(self, files: Sequence[RemoteFile]) -> None:
        """Begins to fetch these, in this order."""
        self._waiting = list(files)
        for number in range(self._connections):
            name = f"flashmoe-fetch-{number}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def wait(self, name: str) -> Path:
        """Returns the file's path when it is there. Raises what stopped the download."""
        with self._changed:
            while name not in self._ready:
                if self._failure is not None:
                    raise self._failure
                assert any(thread.is_alive() for thread in self._threads), "nobody fetches"
                # With a timeout: Ctrl-C is only noticed between waits.
                self._changed.wait(0.2)
        return self._folder / name

    def release(self, name: str) -> None:
        """Deletes a file that was waited for. Raises StorageError."""
        path = self._folder / name
        with storage_errors("cannot delete", path):
            path.unlink(missing_ok=True)
        with self._changed:
            self._held -= self._listing.files[name].size
            self._changed.notify_all()

    def close(self) -> None:
        """Stops the threads. What was written stays, for the next time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._hub.stop()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _work(self) -> None:
        # What a thread that dies of our own bug leaves undone, nobody may wait for.
        failure: FlashMoeError | None = HubError("a thread of the download died; it said why")
        try:
            while (task := self._next()) is not None:
                self._fetch(*task)
            failure = None
        except Stopped:
            failure = None
        except FlashMoeError as error:
            failure = error
        finally:
            if failure is not None:
                self._fail(failure)

    def _fail(self, failure: FlashMoeError) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _next(self) -> tuple[_Job, range] | None:
        """A range to fetch, when there is one; None when all is done."""
        with self._changed:
            while not self._closed and self._failure is None:
                for job in self._jobs.values():
                    if job.todo:
                        job.active += 1
                        return job, job.todo.pop(0)
                if not self._waiting and not self._jobs:
                    return None
                if not self._open_next():
                    self._changed.wait()
        return None

    def _open_next(self) -> bool:
        """Opens the next file if there is room for it."""
        if not self._waiting or not self._fits(self._waiting[0].size):
            return False
        file = self._waiting.pop(0)
        self._held += file.size
        partial = PartialFile(self._folder, file, self._chunk)
        self._report(partial.written_bytes())
        if partial.finished:
            self._ready.add(file.name)
        else:
            job = self._jobs[file.name] = _Job(partial)
            job.start()
            if not job.todo:  # killed between the last chunk and its verification
                job.todo.append(range(0))
        self._changed.notify_all()
        return True

    def _fits(self, size: int) -> bool:
        return self._room is None or self._held == 0 or self._held + size <= self._room

    def _fetch(self, job: _Job, part: range) -> None:
        if part:
            job.partial.write(part, self._blocks(job.partial.file.name, part))
        with self._changed:
            job.active -= 1
            last = not job.todo and job.active == 0
        if last:
            self._finish(job)

    def _blocks(self, name: str, part: range) -> Iterator[bytes]:
        for block in self._hub.blocks(self._listing, name, part.start, part.stop):
            self._report(len(block))
            yield block

    def _finish(self, job: _Job) -> None:
        """Verifies a file; one that is damaged is fetched once more."""
        file = job.partial.file
        try:
            job.partial.finish()
        except HubError:
            if job.tries >= _TRIES:
                job.partial.discard()
                raise
            job.partial.discard()
            self._report(-file.size)
            with self._changed:
                job.start()
                self._changed.notify_all()
            return
        with self._changed:
            del self._jobs[file.name]
            self._ready.add(file.name)
            self._changed.notify_all()

    def _report(self, nbytes: int) -> None:
        if self._arrived is not None:
            self._arrived(nbytes)


def fetch_all(fetcher: Fetcher, files: Sequence[RemoteFile]) -> None:
    """Fetches all files; returns when every one is there. Raises FlashMoeError."""
    fetcher.start(files)
    try:
        for file in files:
            fetcher.wait(file.name)
    finally:
        fetcher.close()
