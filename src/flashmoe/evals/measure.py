"""All that `flashmoe eval` measures of one model, as one object for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.errors import UsageError
from flashmoe.evals.divergence import Divergence, Reference
from flashmoe.evals.paired import paired_difference
from flashmoe.evals.perplexity import Progress, TextScore, score_windows
from flashmoe.evals.tool_calls import ToolCallScore, read_cases, score_tool_calls
from flashmoe.evals.windows import Windows, cut_windows, read_text
from flashmoe.ops.base import Floats, Ints

if TYPE_CHECKING:
    from flashmoe.api import Model


@dataclass(frozen=True)
class EvalOptions:
    """What to measure. text: None: no perplexity. stride: None: windows touch. tool_calls: file of
    cases; held_to: None, "auto", "required", or "both" (raw, and required beside it). directory:
    for what a run that broke off can go on with. engine: settings of flashmoe.load."""

    text: Path | None = None
    windows: int = 40
    window_tokens: int = 512
    stride: int | None = None
    tool_calls: Path | None = None
    held_to: str | None = None
    directory: Path | None = None
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        modes = (None, "auto", "required", "both")
        if self.held_to not in modes:
            expected = "auto, required or both"
            raise UsageError("wrong value", where="--held-to", expected=expected, got=self.held_to)
        if self.text is None and self.tool_calls is None:
            raise UsageError("nothing to measure", where="eval", expected="--text or --tool-calls")

    def cut(self, model: Model) -> Windows:
        """The windows of the text."""
        assert self.text is not None, "there is no text"
        text = read_text(self.text)
        return cut_windows(model, text, self.windows, self.window_tokens, self.stride)


def measure(
    model: Model, options: EvalOptions, progress: Progress, reference: Reference | None = None
) -> dict[str, Any]:
    """The figures of a model: nll, perplexity, kl_mean ... tool_calls (docs/quality.md)."""
    result: dict[str, Any] = {}
    if options.text is not None:
        result |= _text_figures(model, options, progress, reference)
    if options.tool_calls is not None:
        result["tool_calls"] = _tool_figures(model, options, progress)
    return result


def _text_figures(
    model: Model, options: EvalOptions, progress: Progress, reference: Reference | None
) -> dict[str, Any]:
    windows, found = options.cut(model), Divergence()

    def compare(begin: int, logits: Floats, targets: Ints) -> None:
        if reference is not None:
            reference.compare(begin, logits, found)

    directory = None if options.directory is None else options.directory / "sweep-model"
    score = score_windows(model, windows, progress, compare, directory)
    figures = text_row(score)
    if reference is None:
        return figures
    before = reference.score
    delta = paired_difference(before.window_nll, score.window_nll, score.window_scored)
    return (
        figures
        | found.figures()
        | {
            "delta_nll": delta,
            "reference": {
                "nll": before.nll,
                "kept": reference.kept,
                "vocab_size": reference.vocab,
                "noise_floor": reference.noise,
            },
        }
    )


def text_row(score: TextScore) -> dict[str, Any]:
    """A score for JSON."""
    return {"nll": score.nll, "perplexity": score.perplexity} | asdict(score)


def _tool_figures(model: Model, options: EvalOptions, progress: Progress) -> dict[str, Any]:
    assert options.tool_calls is not None, "there are no cases"
    cases, held = read_cases(options.tool_calls), options.held_to

    def score(mode: Any) -> dict[str, Any]:
        told = "" if mode is None else f", {mode}"
        show = lambda done, total: progress(f"tool call {done} of {total}{told}")  # noqa: E731
        return tool_row(score_tool_calls(model, cases, show, held_to=mode)) | {"held_to": mode}

    if held != "both":
        return score(held)
    return score(None) | {"constrained": score("required")}


def tool_row(score: ToolCallScore) -> dict[str, Any]:
    """A score for JSON."""
    return {name: value for name, value in vars(score).items() if name != "output_ids"}
