"""Reading the small JSON files beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flashmoe.errors import PackError, StorageError


def read_object(path: Path, *, required: bool = False) -> dict[str, Any]:
    """The JSON object in `path`; {} when the file is absent and not required.

    Raises:
        PackError: the file is required and absent, or it is not a JSON object.
        StorageError: the system does not let us read it.
    """
    if not path.exists() and not required:
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise PackError(f"not valid JSON ({error})", where=path) from error
    if not isinstance(value, dict):
        raise PackError("wrong content", where=path, expected="an object", got=_kind(value))
    return value


def read_text(path: Path) -> str:
    """The UTF-8 text in `path`. Raises PackError (absent, not UTF-8), StorageError (unreadable)."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PackError("file is missing", where=path) from error
    except UnicodeDecodeError as error:
        raise PackError(f"not UTF-8 text (byte {error.start})", where=path) from error
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", where=path) from error


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
