from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flashmoe.errors import UsageError
from flashmoe.ops import devices


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A root whose /dev shows one card."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "dev/nvidiactl").touch()
    return tmp_path


def test_auto_takes_the_cpu_without_a_driver(tmp_path: Path) -> None:
    assert devices.pick_device("auto", tmp_path) == ("cpu", "no NVIDIA driver")


def test_cuda_without_a_driver_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--device: CUDA cannot be used: no NVIDIA driver"):
        devices.pick_device("cuda", tmp_path)


def test_missing_packages_are_named(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "missing_packages", lambda: ["triton"])
    assert devices.pick_device("auto", card) == ("cpu", "triton not installed")
    with pytest.raises(UsageError, match=r"triton not installed. Install flashmoe\[cuda\]"):
        devices.pick_device("cuda", card)


def test_a_card_is_taken(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "missing_packages", lambda: [])
    assert devices.pick_device("auto", card)[0] == "cuda"
    assert devices.pick_device("cpu", card) == ("cpu", "asked for")


def test_an_unknown_device_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"unknown device; expected auto \| cpu \| cuda, got tpu"):
        devices.pick_device("tpu")


def test_the_cpu_does_not_import_torch() -> None:
    code = (
        "import flashmoe, sys; flashmoe.load(device='cpu', context_length=64).close();"
        "sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
