"""What the verbs of `flashmoe eval` do with a page."""

from __future__ import annotations

from pathlib import Path


def write_page(path: Path, html: str) -> None:
    """Write a page, its folder too if need be. Raises StorageError."""
    from flashmoe.files import storage_errors

    with storage_errors("cannot write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
