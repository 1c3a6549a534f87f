"""One JSON line per measurement, appended to bench/results/<verb>.jsonl; docs/benchmarks.md."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import flashmoe
from flashmoe.bench.machine import cgroup_limit, machine_facts
from flashmoe.files import storage_errors
from flashmoe.models.registry import load_family
from flashmoe.store.info import pack_info
from flashmoe.store.model import StoredModel

SCHEMA: Final = 1
RESULTS: Final = Path("bench/results")

Start = Literal["cold", "warm"]


@dataclass(frozen=True)
class Measurement:
    """What a verb found out.

    data: the model or file that was read. ram: the limit that was asked for. start: whether the
    expert cache was empty at the start; None where there is no cache.
    """

    verb: str
    figures: dict[str, Any]
    data: Path | None = None
    model: dict[str, Any] | None = None
    ram: str | None = None
    start: Start | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The line that is recorded."""
        return {
            "schema": SCHEMA,
            "verb": self.verb,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "flashmoe": flashmoe.__version__,
            "command": command_line(),
            "machine": machine_facts(self.data),
            "model": self.model,
            "limits": {"ram": self.ram, "cgroup_bytes": cgroup_limit()},
            "start": self.start,
            "options": self.options,
            "figures": self.figures,
        }


def command_line() -> str:
    """The running command as one types it at the top of a checkout."""
    program, start = Path(sys.argv[0]).resolve(), ["flashmoe"]
    folder = checkout(program)
    if folder and program.suffix == ".py" and program.name != "__main__.py":
        start = ["python", str(program.relative_to(folder))]
    return shlex.join([*start, *sys.argv[1:]])


def model_facts(pack: StoredModel) -> dict[str, Any]:
    """Family, shape, formats and sizes of a packed model."""
    config = load_family(pack.manifest.family).read_config(pack.config)
    return vars(pack_info(pack, config.num_experts_per_tok))


def append(row: dict[str, Any], file: Path) -> None:
    """Add one line; the folder is made if need be. Raises StorageError."""
    with storage_errors("cannot write", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")


def results_file(verb: str, start: Path) -> Path | None:
    """Where a verb's lines go: in the checkout of flashmoe around `start`; None outside of one."""
    folder = checkout(start)
    return None if folder is None else folder / RESULTS / f"{verb}.jsonl"


def checkout(start: Path) -> Path | None:
    """The nearest folder upwards that is a checkout of flashmoe."""
    for folder in (start, *start.parents):
        if (folder / ".git").exists() and (folder / "src/flashmoe").is_dir():
            return folder
    return None


def commit() -> str | None:
    """`git describe` of the running code; None if it was installed, or git is absent."""
    folder = checkout(Path(flashmoe.__file__).resolve())
    if folder is None:
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
