"""Items of a response's output, whole and as the events that build them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashmoe.generate.request import Token
from flashmoe.parsers.base import CallArguments, CallStart, Content, Reasoning
from flashmoe.server.answers import Part
from flashmoe.server.ids import new_id
from flashmoe.server.openai_shapes import token_logprob
from flashmoe.server.reply import Reply
from flashmoe.server.wire import event


@dataclass
class Message:
    """A text of the assistant."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    id: str = field(default_factory=lambda: new_id("msg_"))
    delta = "response.output_text.delta"
    closing = "response.output_text.done"

    def begin(self) -> dict[str, Any]:
        """As it is announced."""
        head = {"id": self.id, "type": "message", "role": "assistant"}
        return head | {"status": "in_progress", "content": []}

    def done(self) -> dict[str, Any]:
        """Complete."""
        return self.begin() | {"status": "completed", "content": [self.part()]}

    def part(self) -> dict[str, Any]:
        """Its only part."""
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": _logprobs(self.tokens),
        }

    def ending(self) -> dict[str, Any]:
        """Fields of the event that closes its text."""
        return {"text": self.text, "logprobs": _logprobs(self.tokens)}


@dataclass
class Thought:
    """A reasoning."""

    text: str = ""
    id: str = field(default_factory=lambda: new_id("rs_"))
    delta = "response.reasoning_text.delta"
    closing = "response.reasoning_text.done"

    def begin(self) -> dict[str, Any]:
        """As it is announced."""
        head = {"id": self.id, "type": "reasoning", "status": "in_progress"}
        return head | {"summary": [], "content": []}

    def done(self) -> dict[str, Any]:
        """Complete."""
        return self.begin() | {"status": "completed", "content": [self.part()]}

    def part(self) -> dict[str, Any]:
        """Its only part."""
        return {"type": "reasoning_text", "text": self.text}

    def ending(self) -> dict[str, Any]:
        """Fields of the event that closes its text."""
        return {"text": self.text}


@dataclass
class Call:
    """A call of a function."""

    name: str
    call_id: str
    text: str = ""
    id: str = field(default_factory=lambda: new_id("fc_"))
    delta = "response.function_call_arguments.delta"
    closing = "response.function_call_arguments.done"

    def begin(self) -> dict[str, Any]:
        """As it is announced."""
        head = {"id": self.id, "type": "function_call", "status": "in_progress"}
        return head | {"call_id": self.call_id, "name": self.name, "arguments": ""}

    def done(self) -> dict[str, Any]:
        """Complete."""
        return self.begin() | {"status": "completed", "arguments": self.text}

    def part(self) -> None:
        """It has no parts."""

    def ending(self) -> dict[str, Any]:
        """Fields of the event that closes its arguments."""
        return {"name": self.name, "arguments": self.text}


Item = Message | Thought | Call


def _logprobs(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    return [token_logprob(token) for token in tokens if token.logprob is not None]


def items_of(reply: Reply) -> Iterator[Item]:
    """Items of a whole answer."""
    if reply.reasoning:
        yield Thought(reply.reasoning)
    if reply.content or not (reply.calls or reply.reasoning):
        yield Message(reply.content, reply.content_tokens)
    for call in reply.calls:
        yield Call(call.name, call.id, call.arguments)


class Writer:
    """Parts of an answer to events: one item is open at a time. output: items that are complete."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._item: Item | None = None
        self._number = 0

    def event(self, kind: str, **fields: Any) -> bytes:
        """One event with its running number."""
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number} | fields, kind)

    def part(self, part: Part) -> Iterator[bytes]:
        """Events of the next part of the answer."""
        match part.event:
            case Content(text):
                yield from self._text(Message, text, part.tokens)
            case Reasoning(text):
                yield from self._text(Thought, text, ())
            case CallStart(_, name, id):
                yield from self._open(Call(name, id or new_id("call_")))
            case CallArguments(_, fragment):
                assert self._item is not None
                self._item.text += fragment
                yield self._at(self._item.delta, delta=fragment)

    def _text(
        self, kind: type[Message] | type[Thought], text: str, tokens: Sequence[Token]
    ) -> Iterator[bytes]:
        if not isinstance(self._item, kind):
            yield from self._open(kind())
        item = self._item
        assert isinstance(item, Message | Thought)
        item.text += text
        more = {"content_index": 0, "delta": text}
        if isinstance(item, Message):
            item.tokens += tokens
            more["logprobs"] = _logprobs(tokens)
        yield self._at(item.delta, **more)

    def _open(self, item: Item) -> Iterator[bytes]:
        yield from self.close()
        self._item = item
        yield self._output_item("response.output_item.added", item.begin())
        if not isinstance(item, Call):
            yield self._at("response.content_part.added", content_index=0, part=item.part())

    def close(self) -> Iterator[bytes]:
        """Events that complete the open item, if there is one."""
        item = self._item
        if item is None:
            return
        place = {} if isinstance(item, Call) else {"content_index": 0}
        yield self._at(item.closing, **place, **item.ending())
        if not isinstance(item, Call):
            yield self._at("response.content_part.done", content_index=0, part=item.part())
        done, self._item = item.done(), None
        yield self._output_item("response.output_item.done", done)
        self.output.append(done)

    def _at(self, kind: str, **fields: Any) -> bytes:
        assert self._item is not None
        place = {"item_id": self._item.id, "output_index": len(self.output)}
        return self.event(kind, **place, **fields)

    def _output_item(self, kind: str, item: dict[str, Any]) -> bytes:
        return self.event(kind, output_index=len(self.output), item=item)
