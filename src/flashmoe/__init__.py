"""flashmoe: Mixture-of-Experts language models far larger than memory."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that `import flashmoe` and `flashmoe --help` stay light.
_EXPORTS = {
    "load": "flashmoe.api",
    "Model": "flashmoe.api",
    "Piece": "flashmoe.generate.loop",
    "SamplingOptions": "flashmoe.generate.sampling",
    "Stats": "flashmoe.stats",
    "FlashMoeError": "flashmoe.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'flashmoe' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
