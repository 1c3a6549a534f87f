from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe import api, planning
from flashmoe.errors import UsageError
from flashmoe.models.registry import CARD_FAMILIES
from flashmoe.ops import devices
from flashmoe.planning import card_lacks
from flashmoe.quant import BLOCK_FORMATS, Format
from flashmoe.store.format import Matrix
from flashmoe.store.model import open_model
from tests.support.packs import TinyPacks


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


def test_a_model_that_a_card_can_run_stays_there() -> None:
    assert devices.settle_device("why", "auto", None) == ("cuda", "why")


def test_auto_takes_the_cpu_for_other_models() -> None:
    assert devices.settle_device("why", "auto", "this") == (
        "cpu",
        "this does not run on a card yet",
    )


@pytest.fixture
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a card, and the CUDA backend must not be touched."""
    monkeypatch.setattr(api, "pick_device", lambda wanted: ("cuda", "a card"))
    monkeypatch.setitem(sys.modules, "flashmoe.cuda", None)


@pytest.mark.usefixtures("no_backend")
def test_a_family_without_kernels_is_refused_before_anything_is_loaded(
    tiny_packs: TinyPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "CARD_FAMILIES", frozenset({"qwen3_moe"}))
    path = tiny_packs.get("gpt_oss")
    with pytest.raises(UsageError, match=r"--device cuda, family gpt_oss.*Use --device cpu"):
        flashmoe.load(path, device="cuda", context_length=64)
    with flashmoe.load(path, device="auto", context_length=64) as model:
        assert model.stats.device == "cpu"
        assert model.stats.device_reason == "family gpt_oss does not run on a card yet"


@pytest.mark.parametrize("block", BLOCK_FORMATS, ids=lambda block: block.name)
def test_formats_without_kernels_are_refused(tiny_packs: TinyPacks, block: Any) -> None:
    manifest = open_model(tiny_packs.get("qwen3_moe")).manifest
    assert card_lacks(manifest) is None
    fmt = Format(block.name, block.GROUPS[0])
    experts = replace(manifest.experts, down=fmt)
    refused = card_lacks(replace(manifest, experts=experts))
    assert refused == f"format {fmt.name} of experts"
    dense = {name: replace(one, format=fmt) if isinstance(one, Matrix) else one
             for name, one in manifest.tensors.items()}  # fmt: skip
    assert card_lacks(replace(manifest, tensors=dense)) == f"format {fmt.name} of dense matrices"


def test_hybrid_without_a_card_is_refused(tiny_packs: TinyPacks) -> None:
    with pytest.raises(UsageError, match="hybrid: there is no card"):
        flashmoe.load(tiny_packs.get("qwen3_moe"), device="cpu", hybrid=True)


@pytest.mark.usefixtures("no_backend")
@pytest.mark.parametrize("family", sorted(CARD_FAMILIES))
def test_the_families_of_a_card_get_there(tiny_packs: TinyPacks, family: str) -> None:
    with pytest.raises(ImportError):
        flashmoe.load(tiny_packs.get(family), device="cuda", context_length=64)


def test_the_cpu_does_not_import_torch() -> None:
    code = (
        "import flashmoe, sys; flashmoe.load(device='cpu', context_length=64).close();"
        "sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gpus_are_named_by_nvidia_smi(card: Path) -> None:
    text = "NVIDIA H200, 143771, 143104, 580.159.03\nNVIDIA GB10, [N/A], [N/A], 580.95.05\n"
    found = devices.find_gpus(card, lambda: text)
    assert found == (
        devices.Gpu("NVIDIA H200", 143771 << 20, "580.159.03", 143104 << 20),
        devices.Gpu("NVIDIA GB10", None, "580.95.05"),
    )


def test_gpus_are_named_by_proc_where_nvidia_smi_is_missing(card: Path) -> None:
    place = card / "proc/driver/nvidia"
    (place / "gpus/0000:01:00.0").mkdir(parents=True)
    (place / "gpus/0000:01:00.0/information").write_text(
        "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 126\nBus Type: \t PCIe\n"
    )
    (place / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 2024\n"
    )
    found = devices.find_gpus(card, lambda: None)
    assert found == (devices.Gpu("NVIDIA GeForce RTX 4090", None, "550.54.14"),)


def test_without_a_driver_nobody_is_asked(tmp_path: Path) -> None:
    def asked() -> str:
        raise AssertionError

    assert devices.find_gpus(tmp_path, asked) == ()
