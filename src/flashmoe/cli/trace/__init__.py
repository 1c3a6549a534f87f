"""`flashmoe trace`: routing traces."""

from __future__ import annotations

# Module flashmoe.cli.trace.<verb> exports the function <verb>; shown in this order.
VERBS = ("show",)


def trace() -> None:
    """Look into routing traces, which --trace of run, chat, eval and serve records."""
