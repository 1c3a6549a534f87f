"""Options that the verbs of `flashmoe eval` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Text = Annotated[Path | None, typer.Option(help="Text file to score.")]
WindowCount = Annotated[int, typer.Option("--windows", help="Windows of the text.")]
WindowTokens = Annotated[int, typer.Option(help="Tokens per window.")]
Stride = Annotated[
    int | None,
    typer.Option(help="Tokens from one window to the next; default: they do not overlap."),
]
ToolCalls = Annotated[Path | None, typer.Option(help="JSON lines of tool-call cases.")]
HeldTo = Annotated[
    str | None,
    typer.Option(help="Hold tool calls to their grammar (extra serve): auto, required; or both."),
]
Reference = Annotated[Path | None, typer.Option(help="A pack to be close to, such as one in bf16.")]
NoiseFloor = Annotated[
    bool, typer.Option(help="Measure what bf16 rounding makes of the reference, too.")
]
Ram = Annotated[str | None, typer.Option(help="Memory limit, e.g. 8G.")]
Cache = Annotated[str | None, typer.Option(help="Memory for experts: auto, all, 0 or as 2G.")]
Routing = Annotated[
    str | None,
    typer.Option("--routing", metavar="RULES", help="Lossy routing, as k=6 or mass=0.9."),
]
Trace = Annotated[
    str | None,
    typer.Option("--trace", metavar="FILE", help="Record what routers say to a new file."),
]
Journal = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where a run that was broken off finds what is done."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
