"""Server-sent events, read the way clients do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event: its name, if it has one, and its data."""

    name: str | None
    data: Any


def events(text: str) -> list[Event]:
    """The events of a stream, comments left out; "[DONE]" stays text."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if "data" in fields:
            data = fields["data"]
            value = data if data == "[DONE]" else json.loads(data)
            found.append(Event(fields.get("event"), value))
    return found
