"""A real cgroup that runs short of memory while the model runs. Skipped where none can be made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cgroup import MemoryGroup
from tests.support.synthetic import write_synthetic

MIB = 1 << 20

# The neighbour comes at step 100 and goes at 350; pauses keep those steps as long as its growth.
_LONG_RUN = """
import hashlib, json, subprocess, sys, time, flashmoe
from flashmoe.experts import tuner
tuner.PERIOD_S = 0.2  # or growing back would take half a minute; looks stay as they are
model = flashmoe.load(sys.argv[1], context_length=1000)
session, digest, sizes = model.session(), hashlib.sha256(), []
session.feed([(7 * i) % 1000 for i in range(200)])
neighbour = None
for step in range(700):
    if step == 100 and sys.argv[2] != "0":
        neighbour = subprocess.Popen([sys.executable, "-c", sys.argv[3], sys.argv[2]], stdin=-1)
    if step >= 100 and sys.argv[2] != "0":
        time.sleep(0.015)
    if step == 350 and neighbour is not None:
        neighbour.communicate(b"\\n")
        assert neighbour.returncode == 0
    digest.update(session.step((7 * step) % 1000).tobytes())
    sizes.append(model.stats.cache_slots)
print(json.dumps({"digest": digest.hexdigest(), "sizes": sizes,
                  "resizes": model.stats.cache_resizes}))
"""

# 33 MiB per second. What grows faster than looks come is killed, whoever looks.
_NEIGHBOUR = """
import sys, time
eaten = []
for _ in range(int(sys.argv[1])):
    eaten.append(b"x" * (1 << 20))
    time.sleep(0.03)
input()
"""


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pack = tmp_path_factory.mktemp("synthetic") / "pack"
    write_synthetic(pack)
    yield pack
    for file in pack.iterdir():
        file.unlink()


def run(pack: Path, group: MemoryGroup, neighbour_mib: int) -> dict[str, Any]:
    command = [sys.executable, "-c", _LONG_RUN, str(pack), str(neighbour_mib), _NEIGHBOUR]
    done = subprocess.run(command, capture_output=True, preexec_fn=group.enter, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
def test_the_cache_gives_way_to_a_neighbour_and_comes_back(synthetic: Path) -> None:
    """There is no room for both: nobody is killed, the answer is the same."""
    with MemoryGroup(220 * MIB) as group:
        alone, crowded = run(synthetic, group, 0), run(synthetic, group, 90)
        assert group.kills() == 0
    assert set(alone["sizes"]) == {256}
    assert crowded["resizes"]["memory is short"] >= 1
    smallest = min(crowded["sizes"])
    assert smallest < crowded["sizes"][0]
    assert crowded["sizes"][-1] > smallest
    assert crowded["digest"] == alone["digest"]
