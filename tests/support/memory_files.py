"""The kernel's files about memory, made up."""

from __future__ import annotations

from pathlib import Path

GIB, MIB = 1 << 30, 1 << 20
GROUP_PRESSURE = "sys/fs/cgroup/box/memory.pressure"


class MemoryFiles:
    """Files of a kernel under a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 0.0  # now: seconds
        self.memory(total=8 * GIB, available=4 * GIB)
        self.write("proc/self/status", "VmRSS: 100 kB\nVmSwap: 40 kB\n")
        self.write("proc/self/cgroup", "")
        self.write("proc/self/mountinfo", "")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def memory(self, total: int, available: int) -> None:
        lines = f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB\n"
        self.write("proc/meminfo", lines)

    def stalls(self, path: str, seconds: float) -> None:
        line = "avg10=0.00 avg60=0.00 avg300=0.00 total="
        self.write(path, f"some {line}{round(seconds * 1e6)}\nfull {line}0\n")

    def own(self, anonymous: int) -> None:
        """Bytes of the process itself."""
        self.write("proc/self/status", f"RssAnon: {anonymous // 1024} kB\nVmSwap: 40 kB\n")

    def v1(self, limit: int, used: int, cached: int, mapped: int = 0, dirty: int = 0) -> None:
        self.write("proc/self/cgroup", "4:memory:/box\n")
        mount = "/sys/fs/cgroup/memory"
        self.write("proc/self/mountinfo", f"30 25 0:1 / {mount} rw - cgroup cgroup rw,memory\n")
        self.write(f"{mount[1:]}/box/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{mount[1:]}/box/memory.usage_in_bytes", f"{used}\n")
        stat = (
            f"active_file 7\ntotal_active_file {cached // 2}\ntotal_inactive_file {cached // 2}\n"
        )
        stat += f"total_mapped_file {mapped}\ntotal_dirty {dirty}\n"
        self.write(f"{mount[1:]}/box/memory.stat", stat)

    def v2(self, limit: int, used: int, high: str = "max") -> None:
        self.write("proc/self/cgroup", "0::/box\n")
        self.write("proc/self/mountinfo", "30 25 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        self.write("sys/fs/cgroup/box/memory.max", f"{limit}\n")
        self.write("sys/fs/cgroup/box/memory.high", f"{high}\n")
        self.write("sys/fs/cgroup/box/memory.current", f"{used}\n")
        self.write("sys/fs/cgroup/box/memory.stat", "active_file 0\ninactive_file 0\n")
