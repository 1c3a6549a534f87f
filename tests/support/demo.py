"""The bf16 demo checkpoint and the evaluation files, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SHARED = Path(__file__).parents[3] / "shared"


def demo_checkpoint() -> Path:
    """Its directory: FLASHMOE_DEMO_CHECKPOINT or ../shared/demo-model; else skips the test."""
    return _directory("FLASHMOE_DEMO_CHECKPOINT", _SHARED / "demo-model")


def evaluation_files() -> Path:
    """Their directory: FLASHMOE_EVAL or ../shared/eval; else skips the test."""
    return _directory("FLASHMOE_EVAL", _SHARED / "eval")


def _directory(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.is_dir():
        pytest.skip(f"nothing at {path} (set {variable})")
    return path
