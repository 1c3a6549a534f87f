"""Loads a model, asks it, and shows the answer as it comes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from typing import Any

import flashmoe
from flashmoe.cli.report import Answer
from flashmoe.cli.terminal import LiveText, StatusLine
from flashmoe.errors import UsageError
from flashmoe.generate.loop import Piece
from flashmoe.generate.progress import PromptMeter
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.stats import Stats


@dataclass(frozen=True)
class Request:
    """One prompt for one model.

    model: directory of a packed model; None: the demo model. raw: the prompt as it stands, without
    chat template. engine: keyword arguments of flashmoe.load that the user gave.
    """

    model: str | None
    prompt: str
    system: str | None
    raw: bool
    sampling: SamplingOptions
    engine: dict[str, Any]

    def __post_init__(self) -> None:
        if self.raw and self.system is not None:
            raise UsageError("a system message needs the chat template", where="--system, --raw")

    def question(self) -> dict[str, Any]:
        """The prompt as keyword arguments of Model.generate."""
        if self.raw:
            return {"prompt": self.prompt}
        messages = [{"role": "user", "content": self.prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return {"messages": messages}

    def settings(self) -> dict[str, Any]:
        """Everything chosen for the run, for its report."""
        chosen = {"model": self.model, "system": self.system, "raw": self.raw}
        return chosen | asdict(self.sampling) | self.engine


def answer_request(request: Request, *, live: bool) -> tuple[Answer, Stats]:
    """Runs `request`; live: text goes to stdout as it comes. An interrupt keeps what there is."""
    if isinstance(sys.stdout, TextIOWrapper):  # An odd locale must not end an answer midway.
        sys.stdout.reconfigure(errors="replace")
    status, screen = StatusLine(sys.stderr), LiveText(sys.stdout)
    status.show("loading the model …")
    try:
        with flashmoe.load(request.model, **request.engine) as model:
            pieces = model.generate(
                **request.question(),
                **asdict(request.sampling),
                on_progress=_prefill_line(status),
            )
            answer = collect(pieces, screen.write if live else _discard)
            return answer, model.stats
    finally:
        status.clear()
        screen.end_line()


def collect(pieces: Iterable[Piece], show: Callable[[str], None]) -> Answer:
    """Gathers pieces into an Answer; Ctrl-C ends it where it is."""
    answer = Answer()
    try:
        for piece in pieces:
            answer.parts.append(piece.text)
            answer.token_ids.append(piece.token_id)
            answer.finish_reason = piece.finish_reason or answer.finish_reason
            show(piece.text)
    except KeyboardInterrupt:
        answer.finish_reason = "interrupted"
    return answer


def _prefill_line(status: StatusLine) -> Callable[[int, int], None]:
    """A line on the terminal that follows the prompt and is gone at its end."""
    meter = PromptMeter(lambda text: status.show(f"reading the prompt: {text}"))

    def follow(done: int, total: int) -> None:
        if done < total:
            meter(done, total)
        else:
            status.clear()

    return follow


def _discard(text: str) -> None:
    pass
