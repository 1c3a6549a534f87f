"""The bf16 demo checkpoint, which is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def demo_checkpoint() -> Path:
    """Its directory, as FLASHMOE_DEMO_CHECKPOINT says; skips the test where that is not set."""
    path = os.environ.get("FLASHMOE_DEMO_CHECKPOINT")
    if not path:
        pytest.skip("FLASHMOE_DEMO_CHECKPOINT does not name the demo checkpoint")
    return Path(path)
