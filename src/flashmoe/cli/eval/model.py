"""`flashmoe eval MODEL`: perplexity, distance from a reference, tool calls of one model."""

from __future__ import annotations

import json as json_module
from typing import Any

from flashmoe.cli.eval.options import (
    Cache,
    HeldTo,
    Journal,
    Json,
    NoiseFloor,
    Ram,
    Reference,
    Routing,
    Stride,
    Text,
    ToolCalls,
    Trace,
    WindowCount,
    WindowTokens,
)
from flashmoe.cli.models import ModelPath


def model(
    model: ModelPath,
    text: Text = None,
    windows: WindowCount = 40,
    window_tokens: WindowTokens = 512,
    stride: Stride = None,
    tool_calls: ToolCalls = None,
    held_to: HeldTo = None,
    reference: Reference = None,
    noise_floor: NoiseFloor = True,
    journal: Journal = None,
    ram: Ram = None,
    cache: Cache = None,
    routing: Routing = None,
    trace: Trace = None,
    json: Json = False,
) -> None:
    """Measure a model: NLL per token of a text, distance from a reference, tool calls."""
    from flashmoe.cli.bench.options import engine_settings
    from flashmoe.cli.bench.output import status
    from flashmoe.errors import UsageError
    from flashmoe.evals.measure import EvalOptions
    from flashmoe.evals.runs import evaluate

    if reference is not None and text is None:
        raise UsageError("a reference needs a text", where="--reference", expected="--text")
    engine = engine_settings(ram=ram, cache=cache, routing=routing, trace=trace)
    options = EvalOptions(
        text, windows, window_tokens, stride, tool_calls, held_to, journal, engine
    )
    with status() as show:
        result = evaluate(model, options, show, reference, noise=noise_floor)
    print(json_module.dumps(result) if json else as_text(result))


def as_text(result: dict[str, Any]) -> str:
    """What was measured, in lines."""
    lines = []
    if "nll" in result:
        lines.append(
            f"nll {result['nll']:.4f}  perplexity {result['perplexity']:.3f}"
            f"  ({result['windows']} windows of {result['window_tokens']} tokens,"
            f" stride {result['stride']})"
        )
    if "kl_mean" in result:
        lines += _reference_lines(result)
    if calls := result.get("tool_calls"):
        lines.append(_call_line("tool calls", calls))
        if held := calls.get("constrained"):
            lines.append(_call_line("held to the grammar", held))
    if result.get("lossy"):
        lines.append(f"lossy: {result['lossy']}")
    return "\n".join(lines)


def _reference_lines(result: dict[str, Any]) -> list[str]:
    delta, floor = result["delta_nll"], result["reference"]["noise_floor"]
    lines = [
        f"nll - reference {delta['mean']:+.4f}  (95 %: {delta['low']:+.4f} to {delta['high']:+.4f},"
        f" {delta['units']} windows)",
        _distance_line("KL from the reference", result),
    ]
    if floor is not None:
        lines.append(_distance_line("the same of bf16 rounding", floor))
    for part in result["by_confidence"]:
        name = f"  where it gives {part['from']:.2f} to {part['to']:.2f} ({part['tokens']} tokens)"
        lines.append(_distance_line(name, part))
    return lines


def _distance_line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name}: mean {row['kl_mean']:.5f}  median {row['kl_median']:.5f}"
        f"  99.9 % {row['kl_p999']:.4f}  same first {row['top1']:.2%}"
    )


def _call_line(name: str, calls: dict[str, Any]) -> str:
    return (
        f"{name}: {calls['cases']} cases, {calls['valid_json']} valid JSON,"
        f" {calls['right_tool']} right tool, {calls['schema']} by schema, {calls['exact']} exact"
    )
