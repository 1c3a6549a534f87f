"""Findings on machines that are written down, and on this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.doctor import checks
from flashmoe.doctor.checks import examine
from flashmoe.doctor.findings import Finding
from flashmoe.errors import StorageError
from tests.support.doctor_files import write_machine


def findings(models: Path, root: Path, probe: bool = False) -> dict[str, Finding]:
    return {one.name: one for one in examine(models, root, probe)}


def test_a_good_machine_has_nothing_to_do(tmp_path: Path) -> None:
    found = findings(tmp_path, write_machine(tmp_path / "root"))
    for name in ("memory", "cgroup", "swap", "huge pages"):
        assert (found[name].status, found[name].advice) == ("ok", "")
    assert "Test CPU" in found["cpu"].text


def test_what_is_short_or_off_is_said_with_what_to_do(tmp_path: Path) -> None:
    root = write_machine(tmp_path / "r", free=100_000, swap=5000, huge="always madvise [never]")
    found = findings(tmp_path, root)
    for name in ("memory", "swap", "huge pages"):
        assert found[name].status == "warn"
        assert found[name].advice
    assert found["huge pages"].value == "never"


def test_the_disk_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    found = findings(tmp_path / "not" / "there", Path("/"), probe=True)
    assert isinstance(found["disk rate"].value, float)
    assert found["disk rate"].value > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, block: int) -> tuple[bool, float]:
        raise StorageError("cannot be read", where=path)

    monkeypatch.setattr(checks, "probe_disk", refuse)
    assert findings(tmp_path, Path("/"), probe=True)["disk rate"].status == "fail"
