"""`flashmoe bench`: measurements. One module per verb, imported only when it is called for."""

from __future__ import annotations

# Module flashmoe.cli.bench.<verb> exports the function <verb>; shown in this order.
VERBS = (
    "decode",
    "prefill",
    "concurrency",
    "card",
    "startup",
    "disk",
    "kernels",
    "policies",
    "compare",
    "report",
)


def bench() -> None:
    """Measure speed, disk, kernels and cache policies; every run is recorded as a JSON line."""
