"""Where the model that comes with the package lies."""

from __future__ import annotations

from pathlib import Path

from flashmoe.errors import PackError


def demo_model_path() -> Path:
    """The directory of the embedded demo model. Raises PackError when the package lacks it."""
    # Beside this file, not by importlib.resources: an editable install has two roots there.
    path = Path(__file__).parent / "demo_model"
    if not path.is_dir():
        raise PackError("the embedded demo model is missing", where=path, hint="Name a MODEL.")
    return path
