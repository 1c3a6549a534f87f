"""`flashmoe eval`: perplexity and tool calls of a model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer


def eval(
    model: Annotated[Path, typer.Argument(help="A packed model or a checkpoint.")],
    text: Annotated[Path | None, typer.Option(help="Text file to score.")] = None,
    windows: Annotated[int, typer.Option(help="Windows of the text.")] = 40,
    window_tokens: Annotated[int, typer.Option(help="Tokens per window.")] = 512,
    tool_calls: Annotated[Path | None, typer.Option(help="JSON lines of tool-call cases.")] = None,
    held_to: Annotated[
        str | None,
        typer.Option(help="Hold tool calls to their grammar: auto or required (extra serve)."),
    ] = None,
    ram: Annotated[str | None, typer.Option(help="Memory limit, e.g. 8G.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model: NLL per token of a text, tool calls valid and exact."""
    import flashmoe
    from flashmoe.errors import UsageError

    if text is None and tool_calls is None:
        raise UsageError("nothing to measure", where="eval", expected="--text or --tool-calls")
    if held_to not in (None, "auto", "required"):
        raise UsageError("wrong value", where="--held-to", expected="auto or required", got=held_to)
    with flashmoe.load(model, ram=ram) as loaded:
        result = _measure(loaded, text, windows, window_tokens, tool_calls, held_to)
    print(json_module.dumps(result) if json else _as_text(result))


def _measure(
    model: Any,
    text: Path | None,
    windows: int,
    window_tokens: int,
    tool_calls: Path | None,
    held_to: Any,
) -> dict[str, Any]:
    from flashmoe.evals.perplexity import read_text, score_text
    from flashmoe.evals.tool_calls import read_cases, score_tool_calls

    result: dict[str, Any] = {}
    if text is not None:
        score = score_text(model, read_text(text), windows, window_tokens)
        result |= {"nll": score.nll, "perplexity": score.perplexity}
        result |= {"windows": windows, "window_tokens": window_tokens}
        result |= {"scored_tokens": score.scored_tokens}
    if tool_calls is not None:
        calls = score_tool_calls(model, read_cases(tool_calls), held_to=held_to)
        result["tool_calls"] = {
            "held_to": held_to,
            "cases": calls.cases,
            "valid_json": calls.valid_json,
            "exact": calls.exact,
        }
    return result


def _as_text(result: dict[str, Any]) -> str:
    lines = []
    if "nll" in result:
        lines.append(
            f"nll {result['nll']:.4f}  perplexity {result['perplexity']:.3f}"
            f"  ({result['windows']} windows of {result['window_tokens']} tokens)"
        )
    if calls := result.get("tool_calls"):
        lines.append(
            f"tool calls: {calls['cases']} cases, {calls['valid_json']} valid JSON,"
            f" {calls['exact']} exact"
        )
    return "\n".join(lines)
