"""What any chat API asks for, in one form: only this is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flashmoe.errors import RequestError
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.server.requests.base import Record
from flashmoe.server.settings import Limits

Choice = Literal["none", "auto", "required", "named"]
FormKind = Literal["json_object", "json_schema", "regex", "lark", "gbnf"]


@dataclass(frozen=True)
class Form:
    """The form that an answer must have. value: a schema (mapping) or a grammar's text."""

    kind: FormKind
    value: Any = None


@dataclass(frozen=True)
class Tools:
    """Functions in OpenAI's shape, and which of them may or must be called.

    choice: "none", "auto", "required" or "named"; named: that function. parallel: several calls in
    one answer. ignored: tools of kinds that a model on its own cannot have (web search and such).
    """

    functions: Sequence[Record] = ()
    choice: Choice = "auto"
    named: str | None = None
    parallel: bool = True
    ignored: Sequence[str] = ()


@dataclass(frozen=True)
class Asked:
    """How an answer is drawn, whatever it is drawn from.

    sampling: fields of SamplingOptions but max_tokens. max_tokens: None for what the context holds,
    0 for no answer. form: what the answer must look like.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    top_logprobs: int | None = None
    choices: int = 1
    priority: int = 0
    form: Form | None = None

    def options(self, room: int, choice: int) -> SamplingOptions:
        """Options for one of the choices, in a context with room for so many tokens."""
        most = room if self.max_tokens is None else min(room, self.max_tokens)
        given = dict(self.sampling)
        if given.get("seed") is not None:
            given["seed"] = abs(given["seed"]) + choice
        return SamplingOptions(max_tokens=max(1, most), **given)


@dataclass(frozen=True)
class ChatTask:
    """A conversation and how it goes on. messages: in OpenAI's shape, contents as text.

    thinking: None leaves it to the template. thinking_budget: most tokens of reasoning.
    continue_final: the last message is the beginning of the answer.
    """

    messages: Sequence[Record]
    asked: Asked
    tools: Tools = Tools()
    thinking: bool | None = None
    thinking_budget: int | None = None
    continue_final: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


def check_count(name: str, count: int, most: int) -> None:
    """Refuses a list that is too long. Raises RequestError."""
    if count > most:
        told = f"{name}: at most {most} entries are taken, got {count}"
        raise RequestError(told, param=name, code="too_many")


def stop_strings(
    value: str | Sequence[str] | None, limits: Limits, name: str = "stop"
) -> list[str]:
    """Stop strings as a list. Raises RequestError for too many, or an empty one."""
    stops = [value] if isinstance(value, str) else list(value or ())
    check_count(name, len(stops), limits.stops)
    if not all(stops):
        raise RequestError(f"{name}: a stop string must not be empty", param=name)
    return stops
