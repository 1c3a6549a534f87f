"""What a reply is made of, and what a parser and a reply format offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

        text: what it adds to the reply's text, control tokens shown as theirs (Token.raw); it may
        come late (half characters, stop strings), with a later token or not at all.
        """

    def finish(self) -> list[ReplyEvent]:
        """The reply is over (stop token, length, cancelled): what was still undecided."""


@dataclass(frozen=True)
class CallGrammar:
    """The syntax of tool calls, for answers held to it. Grammars are llguidance's Lark.

    trigger: Lark of the marker that begins calls; its id where it is one token, else its text.
    opening: what stands before `body` in an answer that must call, the trigger included.
    bodies: what follows the trigger, up to and with the end of the call: rules from `start` on.
    pick: of which body, by the text of the reply before the trigger; None: it is no call.
    """

    trigger: int | str
    opening: Mapping[str, str]
    bodies: Mapping[str, str]
    pick: Callable[[str], str | None]


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

    def parser(
        self, opens_reasoning: bool = False, tools: Tools = (), *, calls: bool = True
    ) -> ReplyParser:
        """A fresh parser of one reply.

        opens_reasoning: the prompt ended inside the reasoning part (Prompt.opens_reasoning).
        tools: their schemas give XML parameters their types. calls: whether there are calls; else
        their markup is content.
        """

    def calls(self, tools: Tools, *, several: bool = True) -> CallGrammar | None:
        """The syntax of calls to `tools`; None where the format has none.

        several: one opening may be followed by more than one call.
        """

    def answer(self, rules: str) -> str:
        """`rules` (Lark, with a rule `start` for the content) as the grammar of a whole reply."""
