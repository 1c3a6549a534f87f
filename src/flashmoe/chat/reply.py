"""One answer: sampled token by token, held to a grammar, taken apart as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from flashmoe.chat.sequence import Continued, Logits
from flashmoe.errors import UsageError
from flashmoe.generate.answering import Answering
from flashmoe.generate.masks import Masks
from flashmoe.generate.request import GenerationRequest
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.parsers.base import (
    CallArguments,
    CallStart,
    Content,
    Reasoning,
    ReplyEvent,
    ReplyParser,
)
from flashmoe.text.tokenizer import Tokenizer

End = Literal["stop", "length", "interrupted"]


@dataclass
class Call:
    """A tool call as the model wrote it. arguments: JSON text."""

    id: str
    name: str
    arguments: str = ""

    def as_message(self) -> dict[str, Any]:
        """As the chat format has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}

    def values(self) -> dict[str, Any]:
        """The arguments. Raises UsageError when they are no JSON object."""
        try:
            values = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise UsageError(f"arguments are not valid JSON ({error})", where=self.name) from error
        if not isinstance(values, dict):
            raise UsageError("arguments are no object", where=self.name, got=self.arguments[:60])
        return values


@dataclass
class Reply:
    """An answer as far as it has come."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    tokens: int = 0
    end: End = "interrupted"

    def add(self, event: ReplyEvent, number: int) -> None:
        """Take one event in. number: of the first call, to name calls that have no name."""
        if isinstance(event, Reasoning):
            self.reasoning += event.text
        elif isinstance(event, Content):
            self.content += event.text
        elif isinstance(event, CallStart):
            self.calls.append(Call(event.id or f"call_{number + event.index}", event.name))
        elif isinstance(event, CallArguments):
            self.calls[event.index].arguments += event.fragment

    @property
    def whole_calls(self) -> list[Call]:
        """The calls of an answer that came to its own end."""
        return self.calls if self.end == "stop" else []

    def as_message(self) -> dict[str, Any]:
        """As a message of the chat, without the calls of an answer that was cut."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if calls := [call.as_message() for call in self.whole_calls]:
            message["tool_calls"] = calls
        return message


@dataclass(frozen=True)
class Writer:
    """How answers of a model are drawn.

    interrupted: asked before every token; True ends the answer.
    """

    sequence: Continued
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    context_length: int
    interrupted: Callable[[], bool]

    def write(
        self,
        logits: Logits,
        options: SamplingOptions,
        parser: ReplyParser,
        mask: Masks | None,
        reply: Reply,
    ) -> Iterator[list[ReplyEvent]]:
        """Yields the events of each token; `reply.tokens` and `reply.end` are kept up to date."""
        request = GenerationRequest(tuple(self.sequence.ids), options, mask, self.stop_ids)
        answering = Answering(request, self.tokenizer)
        while not self.interrupted():
            ids = self.sequence.ids
            chosen = answering.choose(logits, ids, full=len(ids) >= self.context_length)
            reply.tokens += 1
            yield parser.push(chosen.token.id, chosen.token.raw)
            if chosen.end is not None:
                reply.end = chosen.end
                break
            logits = self.sequence.step(chosen.token.id)
        yield [*parser.push(-1, answering.break_off()), *parser.finish()]
