"""Ids of answers and calls."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return f"{prefix}{secrets.token_hex(12)}"
