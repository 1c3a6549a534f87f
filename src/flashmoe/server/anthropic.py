"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError
from flashmoe.generate.request import Usage
from flashmoe.parsers.base import CallArguments, CallStart, Content, Reasoning, ReplyEvent
from flashmoe.server.answers import Answers, End, Part, Update
from flashmoe.server.anthropic_shapes import anthropic_form, anthropic_tools, conversation
from flashmoe.server.errors import anthropic_error
from flashmoe.server.ids import new_id
from flashmoe.server.reply import Reply, timings, vendor
from flashmoe.server.requests.anthropic import CountBody, MessagesBody
from flashmoe.server.sampling import plain_options
from flashmoe.server.service import Service, body_of, service_of, whole
from flashmoe.server.task import Asked, ChatTask, stop_strings
from flashmoe.server.wire import Json, event

PING = event({"type": "ping"}, "ping")


async def messages(request: Request) -> Response:
    """Answers a conversation, whole or as server-sent events."""
    service, body = service_of(request), await body_of(request, MessagesBody)
    served, task = service.model(), messages_task(body, service)
    key = service.run_key(request, body)
    answers = await service.ask(lambda: served.chat(task, key))
    if not body.stream:
        return await whole(request, answers, 1, lambda r: _message(served.name, task, r))
    writer = _Writer(served.name, task)
    return service.stream(answers, writer.chunks(answers), "text/event-stream", PING)


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a conversation has."""
    service, body = service_of(request), await body_of(request, CountBody)
    task = _task(body, service, Asked())
    prompt = await asyncio.to_thread(service.model().prompt, task)
    return Json({"input_tokens": len(prompt.ids)})


def messages_task(body: MessagesBody, service: Service) -> ChatTask:
    """The body in the form that is run. Raises RequestError."""
    options = plain_options(body, service.model().defaults)
    options["stop"] = stop_strings(body.stop_sequences, service.settings.limits, "stop_sequences")
    return _task(body, service, Asked(options, body.max_tokens, form=anthropic_form(body)))


def _task(body: CountBody, service: Service, asked: Asked) -> ChatTask:
    limits, thinking = service.settings.limits, body.thinking or {}
    turns = conversation(body, limits)
    kind, budget = thinking.get("type"), thinking.get("budget_tokens")
    return ChatTask(
        messages=turns,
        asked=asked,
        tools=anthropic_tools(body, limits),
        thinking={"enabled": True, "disabled": False}.get(str(kind)),
        thinking_budget=budget if type(budget) is int and budget > 0 else None,
        continue_final=turns[-1]["role"] == "assistant" and not turns[-1].get("tool_calls"),
    )


# Whole answers.


def _message(model: str, task: ChatTask, replies: Sequence[Reply]) -> dict[str, Any]:
    reply = replies[0]
    return (
        _head(model)
        | {"content": list(_blocks(reply)), "usage": _usage(reply.end.usage)}
        | _stop(reply.end, len(reply.calls))
        | _figures(reply.end.usage, task)
    )


def _head(model: str) -> dict[str, Any]:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _blocks(reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.reasoning:
        yield {"type": "thinking", "thinking": reply.reasoning, "signature": ""}
    if reply.content or not (reply.calls or reply.reasoning):
        yield {"type": "text", "text": reply.content}
    for call in reply.calls:
        yield {"type": "tool_use", "id": call.id, "name": call.name, "input": call.value}


def _usage(usage: Usage) -> dict[str, Any]:
    """Cached tokens are counted apart from the others, as Anthropic does."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _stop(end: End, calls: int) -> dict[str, Any]:
    if end.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": end.stop_string}
    if end.reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    return {"stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None}


def _figures(usage: Usage, task: ChatTask) -> dict[str, Any]:
    ignored = list(task.tools.ignored)
    return {"timings": timings(usage), "flashmoe": vendor(usage, ignored_tools=ignored)}


# Streams.


class _Writer:
    """Updates to server-sent events: blocks one after the other, each opened and closed."""

    def __init__(self, model: str, task: ChatTask) -> None:
        self._model, self._task = model, task
        self._index, self._kind = -1, ""
        self._calls = 0

    async def chunks(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        usage = _usage(Usage(prompt_tokens=answers.prompt_tokens))
        message = _head(self._model) | {"usage": usage}
        yield event({"type": "message_start", "message": message}, "message_start")
        try:
            async for _, update in answers.updates():
                for chunk in self._update(update):
                    yield chunk
        except RequestError as error:
            yield event(anthropic_error(error), "error")

    def _update(self, update: Update) -> Iterator[bytes]:
        match update:
            case Part(part):
                yield from self._part(part)
            case End():
                yield from self._close()
                yield from self._end(update)

    def _part(self, part: ReplyEvent) -> Iterator[bytes]:
        match part:
            case Reasoning(text):
                yield from self._open("thinking", {"thinking": "", "signature": ""})
                yield self._delta("thinking_delta", thinking=text)
            case Content(text):
                yield from self._open("text", {"text": ""})
                yield self._delta("text_delta", text=text)
            case CallStart(_, name, id):
                self._calls += 1
                yield from self._close()
                named = {"id": id or new_id("toolu_"), "name": name, "input": {}}
                yield from self._open("tool_use", named)
            case CallArguments(_, fragment):
                yield self._delta("input_json_delta", partial_json=fragment)

    def _open(self, kind: str, fields: dict[str, Any]) -> Iterator[bytes]:
        if self._kind == kind:
            return
        yield from self._close()
        self._index, self._kind = self._index + 1, kind
        block = {"type": kind} | fields
        yield self._event("content_block_start", content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._kind:
            yield self._event("content_block_stop")
        self._kind = ""

    def _delta(self, kind: str, **fields: str) -> bytes:
        return self._event("content_block_delta", delta={"type": kind} | fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return event({"type": kind, "index": self._index} | fields, kind)

    def _end(self, end: End) -> Iterator[bytes]:
        stop = {"type": "message_delta", "delta": _stop(end, self._calls)}
        figures = {"usage": _usage(end.usage)} | _figures(end.usage, self._task)
        yield event(stop | figures, "message_delta")
        yield event({"type": "message_stop"}, "message_stop")
