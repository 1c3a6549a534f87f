"""`flashmoe eval`: quality. `flashmoe eval MODEL ...` is short for `flashmoe eval model MODEL`."""

from __future__ import annotations

# Module flashmoe.cli.eval.<verb> exports the function <verb>; shown in this order.
VERBS = ("model", "compare", "knobs", "tasks")
# What is meant where the first word is none of them.
DEFAULT_VERB = "model"


def eval() -> None:
    """Measure quality: perplexity, distance from a reference, tool calls.

    flashmoe eval MODEL [OPTIONS] measures one model (flashmoe eval model --help).
    """
