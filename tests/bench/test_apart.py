"""Work in a process of its own: its result, its errors, its end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from flashmoe.bench.apart import Progress, drop_from_page_cache, run_cold
from flashmoe.errors import FlashMoeError, StorageError, UsageError


def answer(path: Path, number: int, progress: Progress) -> tuple[int, int]:
    progress("thinking")
    return os.getpid(), number + 1


def refuse(path: Path, progress: Progress) -> None:
    raise UsageError("bad", where="--option", expected=1, got=2, hint="Do better")


def die(path: Path, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_result_comes_from_another_process(tiny_pack: Path) -> None:
    said: list[str] = []
    process, number = run_cold(tiny_pack, answer, (41,), said.append)
    assert (said, number) == (["thinking"], 42)
    assert process != os.getpid()


def test_an_error_is_the_same_here(tiny_pack: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run_cold(tiny_pack, refuse, (), lambda text: None)
    assert str(caught.value) == "--option: bad; expected 1, got 2. Do better"


def test_a_killed_process_is_an_error(tiny_pack: Path) -> None:
    with pytest.raises(FlashMoeError, match=r"was killed; got exit status -9. Out of memory\?"):
        run_cold(tiny_pack, die, (), lambda text: None)


def test_dropping_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be dropped"):
        drop_from_page_cache([tmp_path / "gone"])
