"""Stop strings: end the text before the first of them, and show no part of it."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the stop string that is complete first.

    An ending that may become a stop string is held back until later text decides. What comes out
    does not depend on how the text was cut into pushes.

    strings: none of them empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Takes the next text and returns what may be shown, perhaps "". After a match: ""."""
        if self.matched is not None:
            return ""
        self._held += text
        end = self._match() if self._strings else None
        shown = self._held[: self._safe_length() if end is None else end]
        self._held = "" if end is not None else self._held[len(shown) :]
        return shown

    def finish(self) -> str:
        """The text held back for a stop string that never came."""
        rest, self._held = self._held, ""
        return rest

    def _match(self) -> int | None:
        """Where the stop string begins that ends first, the longest if several end there."""
        found = [(self._held.find(s), s) for s in self._strings]
        ends = [(start + len(s), start, s) for start, s in found if start >= 0]
        if not ends:
            return None
        _, start, self.matched = min(ends)
        return start

    def _safe_length(self) -> int:
        """How many leading characters cannot be part of a stop string."""
        longest = max((len(s) for s in self._strings), default=1)
        first = max(0, len(self._held) - longest + 1)
        for start in range(first, len(self._held)):
            if any(s.startswith(self._held[start:]) for s in self._strings):
                return start
        return len(self._held)
