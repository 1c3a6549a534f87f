"""`flashmoe trace show`: what a routing trace holds."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flashmoe.bench.trace_summary import Summary
    from flashmoe.bench.traces import Trace


def show(
    trace: Annotated[Path, typer.Argument(help="A routing trace; see docs/traces.md.")],
    experts: Annotated[
        int | None, typer.Option(help="Experts per layer, where the trace does not say.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show model, tokens, how evenly experts are used and how much tokens have in common."""
    from flashmoe.bench.trace_summary import summarize
    from flashmoe.bench.traces import read_trace

    read = read_trace(trace, experts)
    found = summarize(read)
    if json:
        print(json_module.dumps({"trace": read.name} | _origin(read) | asdict(found)))
    else:
        print(_as_text(read, found))


def _origin(trace: Trace) -> dict[str, Any]:
    if trace.recorded is None:
        return {}
    header = asdict(trace.recorded.header)
    names = ("model", "family", "identity", "num_experts_per_tok", "lossy", "cache_slots")
    cut = {"cut_bytes": trace.recorded.cut_bytes, "complete": trace.recorded.last is not None}
    return {name: header[name] for name in names} | cut


def _as_text(trace: Trace, found: Summary) -> str:
    rows = {
        **_recording(trace),
        "tokens": f"{found.tokens}, {found.decoded} of them decoded one at a time",
        "experts": f"{found.layers} layers of {found.num_experts}; {found.used:.2f} used per token",
        "busiest tenth": f"{found.busiest:.1%} of all uses",
        "overlap": "-"
        if found.overlap is None
        else f"{found.overlap:.1%} of a token's experts were used by the one before it",
        "most used": ", ".join(f"{t.layer}/{t.expert} {t.share:.0%}" for t in found.top)
        + " (layer/expert, share of tokens)",
    }
    if found.mass is not None:
        rows["router mass"] = f"{found.mass:.1%} of all scores are of the experts used"
    if found.hits is not None and found.misses is not None:
        asked = max(1, found.hits + found.misses)
        rows["as it ran"] = f"{found.hits} hits, {found.misses} misses ({found.hits / asked:.1%})"
    return "\n".join(f"{name + ':':<17}{value}" for name, value in rows.items())


def _recording(trace: Trace) -> dict[str, str]:
    if trace.recorded is None:
        return {"trace": f"{trace.name}, ids only"}
    header, lines = trace.recorded.header, {}
    lines["model"] = f"{header.model} ({header.family}, {header.identity[:12]})"
    lines["routing"] = f"lossy: {header.lossy}" if header.lossy else "the model's own"
    lines["cache"] = f"{header.cache_slots} experts"
    if trace.recorded.cut_bytes:
        lines["cut off"] = f"{trace.recorded.cut_bytes} bytes at the end are no whole record"
    elif trace.recorded.last is None:
        lines["cut off"] = "between two passes: the model was not closed"
    return lines
