"""Fixtures of the bench tests: a model to measure, a machine that does not vary."""

from __future__ import annotations

from pathlib import Path

import pytest

import flashmoe
from flashmoe.bench.rates import RateMeter
from tests.support.tiny_checkpoints import write_checkpoint

DISK_RATE, MEMORY_RATE = 2e9, 20e9


@pytest.fixture(scope="session")
def tiny_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed Qwen3-MoE: 2 layers of 6 experts, 2 per token."""
    folder = tmp_path_factory.mktemp("bench")
    source = write_checkpoint(folder / "source", "qwen3_moe")
    (source / "tokenizer.json").unlink()  # a stand-in for bytes, no tokenizer
    flashmoe.pack(source, folder / "pack")
    return folder / "pack"


@pytest.fixture
def fixed_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose disk and memory are always as fast."""

    monkeypatch.setattr(RateMeter, "measure", lambda meter: (DISK_RATE, MEMORY_RATE))
