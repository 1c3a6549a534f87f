"""Every measurement leaves a line that says what was measured, where and how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flashmoe
from flashmoe.bench.machine import machine_facts
from flashmoe.bench.record import (
    Measurement,
    append,
    checkout,
    command_line,
    commit,
    model_facts,
    results_file,
)
from flashmoe.errors import StorageError
from flashmoe.store.packed import PackedModel

KEYS = [
    "schema",
    "verb",
    "time",
    "commit",
    "flashmoe",
    "command",
    "machine",
    "model",
    "limits",
    "start",
    "options",
    "figures",
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What looks like a checkout."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "src/flashmoe/bench").mkdir(parents=True)
    return tmp_path


def test_a_row_says_everything(tiny_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/flashmoe", "bench", "decode", "my model"])
    facts = model_facts(PackedModel.open(tiny_pack))
    row = Measurement("decode", {"a": 1}, tiny_pack, facts, ram="8G", start="cold").row()
    assert list(row) == KEYS
    assert row["command"] == "flashmoe bench decode 'my model'"
    assert row["limits"]["ram"] == "8G"
    assert (row["model"]["family"], row["model"]["moe_layers"]) == ("qwen3_moe", 2)
    assert row["flashmoe"] == flashmoe.__version__
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("bench/turns.py", "python bench/turns.py A --tokens 3"),
        ("src/flashmoe/__main__.py", "flashmoe A --tokens 3"),
        ("../turns.py", "flashmoe A --tokens 3"),
    ],
)
def test_scripts_of_a_checkout_are_named(
    source: Path, monkeypatch: pytest.MonkeyPatch, program: str, command: str
) -> None:
    monkeypatch.setattr(sys, "argv", [str(source / program), "A", "--tokens", "3"])
    assert command_line() == command


def test_lines_are_appended(tmp_path: Path) -> None:
    file = tmp_path / "new" / "decode.jsonl"
    append({"a": 1}, file)
    append({"b": "é"}, file)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"a": 1}, {"b": "é"}]


def test_figures_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append({"a": float("nan")}, tmp_path / "decode.jsonl")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        append({}, tmp_path / "file" / "decode.jsonl")


def test_lines_go_to_the_checkout_around(source: Path) -> None:
    expected = source / "bench/results/disk.jsonl"
    assert results_file("disk", source) == expected
    assert results_file("disk", source / "src/flashmoe/bench") == expected


def test_another_repository_is_no_checkout(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert checkout(tmp_path) is None
    assert results_file("disk", tmp_path) is None


def test_the_commit_is_that_of_the_running_code(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / ".git").rmdir()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", source, *arguments], check=True)
    monkeypatch.setattr(flashmoe, "__file__", str(source / "src/flashmoe/__init__.py"))
    found = commit()
    assert found is not None
    assert len(found) == 12
    (source / "file").write_text("")
    subprocess.run(["git", "-C", source, "add", "file"], check=True)
    assert commit() == f"{found}-dirty"


def test_no_commit_without_a_checkout_or_git(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flashmoe, "__file__", str(source / "src/flashmoe/__init__.py"))
    monkeypatch.setenv("PATH", "")
    assert commit() is None
    monkeypatch.setattr(flashmoe, "__file__", "/nowhere/flashmoe/__init__.py")
    assert commit() is None


def test_facts_of_this_machine(tmp_path: Path) -> None:
    facts = machine_facts(tmp_path)
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["memory_bytes"] > 1 << 28
    assert facts["disk"].keys() == {"device", "model", "file_system"}
    assert machine_facts()["disk"] is None


def test_facts_from_the_files_of_the_kernel(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("")
    device = data.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast CPU @ 3GHz\n",
        "proc/meminfo": "MemTotal: 8 kB\nMemAvailable: 4 kB\n",
        "proc/self/status": "VmRSS: 1 kB\n",
        "proc/self/mountinfo": f"1 2 {number} / / rw - ext4 /dev/x1 rw\n",
        "sys/devices/x/device/model": "Quick SSD  \n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    partition = tmp_path / "sys/devices/x/x1"
    partition.mkdir()
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block" / number).symlink_to(partition)
    facts = machine_facts(data, root=tmp_path)
    assert facts["cpu"] == "Fast CPU @ 3GHz"
    assert facts["memory_bytes"] == 8192
    assert facts["disk"] == {"device": "x1", "model": "Quick SSD", "file_system": "ext4"}
