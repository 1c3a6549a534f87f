"""Decode while a neighbour takes and frees memory: speed and cache size over time, as a table.

bench/in_cgroup 3G python tools/neighbour.py MODEL [MIB] [MIB_PER_S] (docs/experiments/governor.md).
The neighbour starts after 15 s, takes MIB, keeps them for 10 s and ends; decode goes on for 40 s.
"""

from __future__ import annotations

import subprocess
import sys
import time

import flashmoe

_NEIGHBOUR = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(b"x" * (1 << 20))
    time.sleep(1 / float(sys.argv[2]))
time.sleep(10)
"""
_ALONE_S, _AFTER_S, _ROW_S = 15, 40, 5


def main(model_path: str, mib: str = "500", rate: str = "25") -> None:
    """Print a row every 5 seconds."""
    seconds = _ALONE_S + float(mib) / float(rate) + 10 + _AFTER_S
    neighbour = None
    with flashmoe.load(model_path, context_length=4096) as model:
        session = model.session()
        session.feed(range(100, 116))
        start = row = time.monotonic()
        steps = token = 0
        print("second  tok/s  slots  changes")
        while (now := time.monotonic()) - start < seconds:
            if neighbour is None and now - start > _ALONE_S:
                command = [sys.executable, "-c", _NEIGHBOUR, mib, rate]
                neighbour = subprocess.Popen(command)
            if now - row >= _ROW_S:
                stats = model.stats
                changes = dict(stats.cache_resizes)
                speed = steps / (now - row)
                print(
                    f"{now - start:6.0f}  {speed:5.2f}  {stats.cache_slots:5}  {changes}",
                    flush=True,
                )
                row, steps = now, 0
            token = int(session.step(token).argmax())
            steps += 1
    if neighbour is not None:
        print("neighbour ended with", neighbour.wait())


if __name__ == "__main__":
    main(*sys.argv[1:])
