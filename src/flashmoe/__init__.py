"""flashmoe: Mixture-of-Experts language models far larger than memory.

    import flashmoe

    with flashmoe.load("packed-model", ram="8G") as model:
        for piece in model.generate(messages=[{"role": "user", "content": "Hello"}]):
            print(piece.text, end="", flush=True)

Names are imported on first use, so that `import flashmoe` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmoe.api import Model, load
    from flashmoe.errors import FlashMoeError
    from flashmoe.generate.engine import Session
    from flashmoe.generate.loop import Piece
    from flashmoe.packing import pack
    from flashmoe.stats import Stats

__version__ = "0.1.0"

__all__ = [
    "FlashMoeError",
    "Model",
    "Piece",
    "Session",
    "Stats",
    "__version__",
    "errors",
    "load",
    "pack",
]

_HOMES = {
    "FlashMoeError": "flashmoe.errors",
    "Model": "flashmoe.api",
    "Piece": "flashmoe.generate.loop",
    "Session": "flashmoe.generate.engine",
    "Stats": "flashmoe.stats",
    "load": "flashmoe.api",
    "pack": "flashmoe.packing",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("flashmoe.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'flashmoe' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
