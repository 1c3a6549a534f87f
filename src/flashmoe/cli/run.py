"""flashmoe run: one prompt, one answer."""

from __future__ import annotations

import json
import secrets
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashmoe.errors import UsageError

if TYPE_CHECKING:
    from flashmoe.cli.answer import Request
    from flashmoe.cli.report import Answer
    from flashmoe.stats import Stats


def _option(flag: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=help, metavar=metavar)


def run(
    first: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL] PROMPT",
            show_default=False,
            help="A packed model or a checkpoint (default: the demo model inside the package) and "
            "the prompt; - reads it from stdin.",
        ),
    ],
    second: Annotated[str | None, typer.Argument(metavar="", hidden=True)] = None,
    system: Annotated[
        str | None, typer.Option(help="System message, before the prompt.", metavar="TEXT")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    max_tokens: Annotated[int, _option("--max-tokens", "Most tokens in the answer.")] = 512,
    temperature: Annotated[
        float, _option("--temperature", "How much chance; 0: none (greedy).")
    ] = 0.0,
    top_p: Annotated[
        float, _option("--top-p", "Fewest tokens that make up this probability; 1: off.")
    ] = 1.0,
    top_k: Annotated[int, _option("--top-k", "Only the K likeliest tokens; 0: off.")] = 0,
    min_p: Annotated[
        float, _option("--min-p", "Least share of the likeliest one's probability; 0: off.")
    ] = 0.0,
    repeat_penalty: Annotated[
        float, _option("--repeat-penalty", "Against tokens seen before; 1: off.")
    ] = 1.0,
    seed: Annotated[
        int | None, _option("--seed", "Makes chance repeatable; default: a fresh one.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        _option("--stop", "Text that ends the answer; may be repeated.", "TEXT"),
    ] = None,
    experts: Annotated[
        int | None,
        _option("--experts", "Experts per token, fewer than the model's own: lossy.", "K"),
    ] = None,
    routing: Annotated[
        str | None,
        _option("--routing", "Lossy routing: mass=0.9, ratio=0.3, margin=0.5, skip=0.75.", "RULES"),
    ] = None,
    ram: Annotated[str | None, _option("--ram", "Hard memory limit, as 3G or 25%.", "SIZE")] = None,
    cache: Annotated[
        str | None, _option("--cache", "Memory for experts: auto, all, 0 or as 2G.", "SIZE")
    ] = None,
    prefetch: Annotated[
        str | None,
        _option("--prefetch", "Read likely experts ahead: auto, on, off.", "MODE"),
    ] = None,
    threads: Annotated[int | None, _option("--threads", "Kernel threads.")] = None,
    ctx: Annotated[int | None, _option("--ctx", "Context length in tokens.")] = None,
    isa: Annotated[
        str | None, _option("--isa", "Kernels: auto, scalar, avx2, avx512, amx, neon.", "NAME")
    ] = None,
    device: Annotated[str | None, _option("--device", "auto, cpu or cuda.", "NAME")] = None,
    vram: Annotated[
        str | None, _option("--vram", "Hard limit of memory on the card, as 20G or 50%.", "SIZE")
    ] = None,
    hybrid: Annotated[
        bool,
        _option("--hybrid", "Let the CPU compute experts in RAM beside the card: other rounding."),
    ] = False,
    trace: Annotated[
        str | None, _option("--trace", "Record what routers say to a new file.", "FILE")
    ] = None,
    lock: Annotated[
        bool, typer.Option("--lock", help="Lock the resident weights in memory.")
    ] = False,
    json_output: Annotated[
        bool, _option("--json", "One JSON object instead of live text.")
    ] = False,
    timing: Annotated[bool, _option("--timing", "Time per phase, and the bound.")] = False,
) -> None:
    """Answer a prompt; text to stdout, figures to stderr.

    Ctrl-C ends the answer, shows the figures and exits with code 130.
    """
    from flashmoe.cli.answer import Request, answer_request
    from flashmoe.generate.sampling import SamplingOptions

    model, prompt = (None, first) if second is None else (first, second)
    sampling = SamplingOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=_seed(seed, temperature),
        stop=stop or (),
    )
    engine = {
        "ram": ram,
        "cache": cache,
        "prefetch": prefetch,
        "threads": threads,
        "context_length": ctx,
        "experts_per_token": experts,
        "routing": routing,
        "isa": isa,
        "lock": lock or None,
        "device": device,
        "vram": vram,
        "hybrid": hybrid or None,
        "trace": trace,
    }
    given = {name: value for name, value in engine.items() if value is not None}
    request = Request(model, _text(prompt), system, raw, sampling, given)
    answer, stats = answer_request(request, live=not json_output)
    _report(request, answer, stats, json_output, timing)
    if answer.finish_reason == "interrupted":
        raise typer.Exit(130)


def _text(prompt: str) -> str:
    """The prompt, read from stdin (without its last line end) if it is "-"; never empty."""
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"not UTF-8 text (byte {error.start})", where="stdin") from error
    if not prompt.strip():
        raise UsageError("the prompt is empty", where="PROMPT")
    return prompt


def _seed(seed: int | None, temperature: float) -> int | None:
    """A seed even when none was given, so that the run can be repeated from its report."""
    return secrets.randbits(32) if seed is None and temperature > 0 else seed


def _report(request: Request, answer: Answer, stats: Stats, as_json: bool, timing: bool) -> None:
    from flashmoe.cli.report import json_report, summary_line, warnings
    from flashmoe.cli.timing import timing_report

    if as_json:
        print(json.dumps(json_report(answer, stats, request.settings()), ensure_ascii=False))
        return
    for warning in warnings(stats):
        print(f"flashmoe: warning: {warning}", file=sys.stderr)
    if "device" in request.engine or stats.device != "cpu":
        print(f"flashmoe: device {stats.device}: {stats.device_reason}", file=sys.stderr)
    print(summary_line(answer, stats), file=sys.stderr)
    if timing:
        print(timing_report(stats), file=sys.stderr)
