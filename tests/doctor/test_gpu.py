"""What doctor says about cards, by what driver and packages tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.doctor import gpu as module
from flashmoe.doctor.findings import Finding
from flashmoe.doctor.gpu import check_gpus, cuda_of_torch
from flashmoe.ops.devices import Gpu

CARD = Gpu("NVIDIA GeForce RTX 4090", 24 << 30, "580.95", 23 << 30)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a device file, torch and Triton."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    monkeypatch.setattr(module, "missing_packages", lambda: [])
    monkeypatch.setattr(module, "cuda_of_torch", lambda: "13.0")
    monkeypatch.setattr(module, "_version", lambda name: "9.9")
    return tmp_path


def findings(root: Path, monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> list[Finding]:
    monkeypatch.setattr(module, "find_gpus", lambda root: gpus)
    return list(check_gpus(root))


def test_a_machine_without_a_card(tmp_path: Path) -> None:
    (found,) = check_gpus(tmp_path)
    assert (found.status, found.value, found.advice) == ("ok", "none", "")


def test_a_card_that_can_be_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, packages = findings(root, monkeypatch, CARD)
    assert (card.status, packages.status) == ("ok", "ok")
    assert "RTX 4090, 23.00 GiB free of 24.00 GiB, driver 580.95" in card.text
    assert packages.text == "torch 9.9 for CUDA 13.0, triton 9.9"
    assert packages.value == "cuda"


def test_every_card_has_its_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [one.name for one in findings(root, monkeypatch, CARD, CARD)]
    assert names == ["gpu", "gpu", "cuda packages"]


@pytest.mark.parametrize(
    ("card", "advice"),
    [
        (Gpu("x", 24 << 30, "580.1", 1 << 30), "--device cpu"),
        (Gpu("x", None, "580.1"), "--vram"),
    ],
)
def test_a_card_of_which_little_can_be_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, card: Gpu, advice: str
) -> None:
    found, _ = findings(root, monkeypatch, card)
    assert found.status == "warn"
    assert advice in found.advice


def test_a_device_that_the_driver_does_not_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = findings(root, monkeypatch)
    assert (found.status, "driver" in found.advice) == ("warn", True)


def test_packages_that_are_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing_packages", lambda: ["torch", "triton"])
    _, found = findings(root, monkeypatch, CARD)
    assert (found.status, found.advice) == ("warn", "To use it: pip install 'flashmoe[cuda]'")


def test_a_torch_for_the_cpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cuda_of_torch", lambda: None)
    _, found = findings(root, monkeypatch, CARD)
    assert (found.status, found.text) == ("warn", "torch 9.9, not built for CUDA")


def test_a_driver_that_is_too_old(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = findings(root, monkeypatch, Gpu("x", 24 << 30, "550.54", 23 << 30))
    assert found.status == "fail"
    assert "Update the driver to 580" in found.advice


@pytest.mark.parametrize(
    ("line", "expected"),
    [("cuda: Optional[str] = '12.8'", "12.8"), ("cuda: Optional[str] = None", None), ("", None)],
)
def test_the_cuda_of_an_installed_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: str | None
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    (tmp_path / "torch/version.py").write_text(f"__version__ = '2.9'\n{line}\nhip = None\n")

    class Spec:
        origin = str(tmp_path / "torch/__init__.py")

    monkeypatch.setattr(module, "find_spec", lambda name: Spec)
    assert cuda_of_torch() == expected
