"""What a check of `flashmoe doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What a check found. advice: what to do, "" where nothing is. value: for programs."""

    name: str
    status: Status
    text: str
    advice: str = ""
    value: float | str | None = None
