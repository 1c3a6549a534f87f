"""One answer: sampled token by token, held to a grammar, taken apart as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from flashmoe.chat.sequence import Continued, Logits
from flashmoe.errors import UsageError
from flashmoe.generate.masks import Masks
from flashmoe.generate.sampling import Sampler, SamplingOptions
from flashmoe.generate.stop import StopStrings
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
        sampler, text = Sampler(options), _Text(self.tokenizer, options)
        while not self.interrupted():
            apply = mask.apply if mask is not None and mask.active() else None
            id = sampler.choose(logits, self.sequence.ids, mask=apply)
            reply.tokens += 1
            if id in self.stop_ids:
                reply.end = "stop"
                break
            if mask is not None:
                mask.accept(id)
            yield parser.push(id, text.push(id))
            if (end := self._end(text, mask, options, reply)) is not None:
                reply.end = end
                break
            logits = self.sequence.step(id)
        yield [*parser.push(-1, text.finish()), *parser.finish()]

    def _end(
        self, text: _Text, mask: Masks | None, options: SamplingOptions, reply: Reply
    ) -> End | None:
        if text.stopped or (mask is not None and mask.finished()):
            return "stop"
        full = len(self.sequence.ids) >= self.context_length
        return "length" if full or reply.tokens >= options.max_tokens else None


class _Text:
    """Text of tokens, control tokens as theirs, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, options: SamplingOptions) -> None:
        self._pieces = tokenizer.detokenizer(skip_special=False)
        self._stop = StopStrings(options.stop)

    @property
    def stopped(self) -> bool:
        return self._stop.matched is not None

    def push(self, id: int) -> str:
        return self._stop.push(self._pieces.push([id]))

    def finish(self) -> str:
        return self._stop.push(self._pieces.finish()) + self._stop.finish()
