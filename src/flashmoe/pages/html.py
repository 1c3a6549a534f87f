"""HTML pages that need nothing beside them: no script, no style sheet, no image of another file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #223; max-width: 76rem; margin: 2rem auto }
body { padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 2px solid #2f5d8a; padding-bottom: .2rem }
section { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; white-space: nowrap }
th { background: #eef2f6 }
tr:nth-child(odd) td { background: #fafbfc }
th, td { border-bottom: 1px solid #d5dbe3; padding: .3rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left }
img, svg { max-width: 100% }
.warning { border-left: 6px solid #c0392b; background: #fbeceb; padding: .6rem 1rem }
"""


def page(title: str, body: str) -> str:
    """A whole page; body: HTML."""
    name = escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{name}</h1>\n{body}</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it, HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are plain text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table>\n<tr>{head}</tr>\n{body}</table>\n"


def paragraph(text: str, *, warning: bool = False) -> str:
    """Plain text, on red ground if it is a warning."""
    kind = ' class="warning"' if warning else ""
    return f"<p{kind}>{escape(text)}</p>\n"
