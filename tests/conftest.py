"""Packs that many tests read: made once per session, never changed (copy one to damage it)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.packs import TinyPacks


def pytest_configure() -> None:
    """A shell starts jobs in the background with SIGINT ignored, and processes inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked slow run only where they are asked for."""
    if os.environ.get("FLASHMOE_SLOW") == "1":
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow (set FLASHMOE_SLOW=1)"))


@pytest.fixture(scope="session")
def tiny_packs(tmp_path_factory: pytest.TempPathFactory) -> TinyPacks:
    """Packs of tiny checkpoints, by family and formats."""
    return TinyPacks(tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="session", params=["qwen3_moe", "qwen3_5_moe", "gpt_oss", "deepseek_v3"])
def family(request: pytest.FixtureRequest) -> str:
    """Families that between them have every kind of layer."""
    name: str = request.param
    return name


@pytest.fixture
def tiny(tiny_packs: TinyPacks, family: str) -> Path:
    """A pack of the family as `flashmoe pack` makes it: q4 experts, q8 for the rest."""
    return tiny_packs.get(family)
