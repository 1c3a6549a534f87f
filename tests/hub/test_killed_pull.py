"""kill -9 at random moments of pull and pack: the pack is that of an undisturbed one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub.conftest import FAST
from tests.store.support import contents
from tests.support.hub_server import StandIn

_PULL = f"""
import sys
from pathlib import Path
from flashmoe.hub.pull import Pull
from flashmoe.hub.repo import Hub
from flashmoe.hub.transport import Retry, Transport
from tests.hub.conftest import ADDRESS
from tests.store.support import OPTIONS
hub = Hub(Transport(sys.argv[1], None, {FAST!r}), Path(sys.argv[2]) / "cache")
pull = Pull(hub, connections=3, chunk_bytes=20_000, sync_bytes=20_000)
print("ready", flush=True)
pull.packed(ADDRESS, Path(sys.argv[2]) / "p", OPTIONS, "q4")
"""


def killed_pull(stand_in: StandIn, folder: Path, kills: int, seed: int) -> int:
    """Starts pulls until one gets through, the first `kills` killed -> how many were."""
    rng, killed = random.Random(seed), 0
    while not (folder / "p").exists():
        process = subprocess.Popen(
            [sys.executable, "-c", _PULL, stand_in.endpoint, str(folder)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        if killed < kills:
            time.sleep(rng.uniform(0.0, 0.35))
            process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    return killed


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(
    stand_in: StandIn, tmp_path: Path, expected: dict[str, bytes], kills: int
) -> None:
    stand_in.delay = 0.01  # so that the kills fall into downloads, too
    killed = rounds = 0
    while killed < kills:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        killed += killed_pull(stand_in, folder, kills - killed, seed=rounds)
        rounds += 1
        assert contents(folder / "p") == expected
