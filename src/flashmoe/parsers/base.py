"""What a reply is made of, and what a parser and a reply format offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reasoning:
    """A piece of the model's reasoning, without its markers."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer proper."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A tool call begins. index: 0, 1, ... within the reply.

    id: the model's own name for this call, where its format has one.
    """

    index: int
    name: str
    id: str | None = None


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments; the pieces joined are the model's JSON object."""

    index: int
    fragment: str


@dataclass(frozen=True)
class CallEnd:
    """A tool call is over."""

    index: int


ReplyEvent = Reasoning | Content | CallStart | CallArguments | CallEnd


class ReplyParser(Protocol):
    """The parser of one reply.

    However the reply is cut into tokens and pieces of text, the events are the same, once
    neighbours of a kind are joined.
    """

    def push(self, token_id: int, text: str) -> list[ReplyEvent]:
        """Takes the next token.

        text: what the streaming detokeniser gave for it; control tokens may show as their text
        or as nothing.
        """

    def finish(self) -> list[ReplyEvent]:
        """The reply is over (stop token, length, cancelled): what was still undecided."""


@dataclass(frozen=True)
class ToolChoice:
    """Which calls a reply may have: "auto", "none", "required", or "named" with `name`."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


@dataclass(frozen=True)
class CallGrammar:
    """The syntax of calls for a constrained answer.

    trigger: id of the token after which a call goes on by `body`; None when the format's marker
        is text (`trigger_text`).
    start: Lark rules of a whole call, trigger included; body: what follows the trigger.
    """

    trigger: int | None
    trigger_text: str
    start: str
    body: str


class ReplyFormat(Protocol):
    """How a model writes reasoning and calls."""

    @property
    def name(self) -> str:
        """The format's name, e.g. "hermes"."""

    @property
    def think_start(self) -> int | None:
        """Id of the token that opens the reasoning part, None without one."""

    @property
    def think_end(self) -> int | None:
        """Id of the token that closes the reasoning part, None without one."""

    def parser(self, opens_reasoning: bool = False, tools: Tools = ()) -> ReplyParser:
        """A fresh parser.

        opens_reasoning: the prompt ended inside the reasoning part (Prompt.opens_reasoning).
        tools: their schemas give XML parameters their types.
        """
