"""The bf16 demo checkpoint, which is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def demo_checkpoint() -> Path:
    """Its directory: FLASHMOE_DEMO_CHECKPOINT or ../shared/demo-model; else skips the test."""
    beside = Path(__file__).parents[3] / "shared" / "demo-model"
    path = Path(os.environ.get("FLASHMOE_DEMO_CHECKPOINT", beside))
    if not path.is_dir():
        pytest.skip(f"the demo checkpoint is not at {path} (FLASHMOE_DEMO_CHECKPOINT)")
    return path
