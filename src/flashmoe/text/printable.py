"""Text of a model or a tool on its way to a terminal."""

from __future__ import annotations

import re
import unicodedata

# A model could otherwise move the cursor, set the title or worse.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without control characters, line feeds and tabs excepted."""
    return _CONTROL.sub("", text)


def visible(text: str) -> str:
    """`text` with every character that does not show, or turns others around, as its code.

    For what a user is asked to allow: it must not look like something else.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")
    return f"\\u{ord(character):04x}" if hidden and character not in "\n\t" else character
