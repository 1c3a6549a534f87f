"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe import __version__
from flashmoe.errors import RequestError
from flashmoe.generate.request import Prefill, Usage
from flashmoe.parsers.base import CallArguments, CallStart, Content, Reasoning
from flashmoe.server.answers import Answers, End, Part, Update
from flashmoe.server.errors import openai_error
from flashmoe.server.ids import new_id
from flashmoe.server.messages import chat_messages, chat_tools
from flashmoe.server.openai_shapes import chat_logprobs, usage_object
from flashmoe.server.reply import Reply, timings, total, total_usage, vendor
from flashmoe.server.requests.openai import ChatBody
from flashmoe.server.sampling import asked_of, form_of, template_variables, thinking_of
from flashmoe.server.service import Service, body_of, service_of, whole
from flashmoe.server.task import ChatTask
from flashmoe.server.wire import DONE, event


async def chat_completions(request: Request) -> Response:
    """Answers a conversation, whole or as server-sent events."""
    service, body = service_of(request), await body_of(request, ChatBody)
    served, task = service.model(), chat_task(body, service)
    key = service.run_key(request, body)
    answers = await service.ask(lambda: served.chat(task, key))
    shape = _Shape(served.name, task, bool(body.logprobs))
    if not body.stream:
        return await whole(request, answers, task.asked.choices, shape.whole)
    writer = _Writer(shape, _include_usage(body), bool(body.return_progress))
    return service.stream(answers, writer.chunks(answers), "text/event-stream")


def chat_task(body: ChatBody, service: Service) -> ChatTask:
    """The body in the form that is run. Raises RequestError."""
    limits = service.settings.limits
    return ChatTask(
        messages=chat_messages(body.messages, limits),
        asked=asked_of(
            body,
            limits,
            service.model().defaults,
            max_tokens=_max_tokens(body),
            top_logprobs=_top_logprobs(body),
            form=form_of(body),
        ),
        tools=chat_tools(body.tools, body.tool_choice, body.parallel_tool_calls, limits),
        thinking=thinking_of(body),
        thinking_budget=body.thinking_budget,
        continue_final=_continues(body),
        variables=template_variables(body),
    )


def _max_tokens(body: ChatBody) -> int | None:
    newer = body.max_completion_tokens
    return body.max_tokens if newer is None else newer


def _top_logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    return body.top_logprobs or 0 if body.logprobs else None


def _continues(body: ChatBody) -> bool:
    """Whether the last message is to be continued, in vLLM's and llama.cpp's words."""
    wanted = bool(body.continue_final_message)
    if wanted and body.add_generation_prompt:
        told = "continue_final_message and add_generation_prompt exclude each other"
        raise RequestError(told, param="continue_final_message")
    return wanted


def _include_usage(body: ChatBody) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def finish_reason(end: End, calls: int) -> str:
    """Why the answer ended."""
    return "tool_calls" if calls and end.reason == "stop" else end.reason


@dataclass(frozen=True)
class _Shape:
    """What all objects of one answer have in common."""

    model: str
    task: ChatTask
    logprobs: bool
    id: str = field(default_factory=lambda: new_id("chatcmpl-"))
    created: int = field(default_factory=lambda: int(time()))

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"flashmoe-{__version__}",
        }

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """A chat.completion."""
        choices = [self._choice(i, reply) for i, reply in enumerate(replies)]
        reasoning = sum(reply.end.reasoning_tokens for reply in replies)
        figures = self.figures(total(replies), reasoning)
        return self.head("chat.completion") | {"choices": choices} | figures

    def figures(self, usage: Usage, reasoning: int) -> dict[str, Any]:
        return {
            "usage": usage_object(usage, reasoning),
            "timings": timings(usage),
            "flashmoe": vendor(usage),
        }

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        return {
            "index": index,
            "message": _message(reply),
            "logprobs": chat_logprobs(reply.content_tokens) if self.logprobs else None,
            "finish_reason": finish_reason(reply.end, len(reply.calls)),
        }


def _message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.reasoning:
        message |= _reasoning(reply.reasoning)
    if reply.calls:
        message["content"] = reply.content or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in reply.calls
        ]
    return message


def _reasoning(text: str) -> dict[str, str]:
    """Under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


class _Writer:
    """Updates to server-sent events."""

    def __init__(self, shape: _Shape, usage: bool, progress: bool) -> None:
        self._shape, self._usage, self._progress = shape, usage, progress
        self._calls = [0] * shape.task.asked.choices
        self._ends: list[End] = []

    async def chunks(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        for index in range(len(self._calls)):
            yield self._chunk(index, {"role": "assistant", "content": None})
        try:
            async for index, update in answers.updates():
                if chunk := self._update(index, update):
                    yield chunk
            if self._usage:
                yield event(self._last())
        except RequestError as error:
            yield event(openai_error(error))
        yield DONE

    def _update(self, index: int, update: Update) -> bytes | None:
        match update:
            case Part(Content(text), tokens):
                logprobs = chat_logprobs(tokens) if self._shape.logprobs else None
                return self._chunk(index, {"content": text}, logprobs=logprobs)
            case Part(Reasoning(text)):
                return self._chunk(index, _reasoning(text))
            case Part(CallStart(call, name, id)):
                self._calls[index] += 1
                return self._chunk(index, {"tool_calls": [_call_start(call, name, id)]})
            case Part(CallArguments(call, fragment)):
                delta = {"index": call, "function": {"arguments": fragment}}
                return self._chunk(index, {"tool_calls": [delta]})
            case Prefill() if self._progress:
                return self._chunk(index, {}, prompt_progress=prompt_progress(update))
            case End():
                return self._end(index, update)
        return None

    def _end(self, index: int, end: End) -> bytes:
        self._ends.append(end)
        reason = finish_reason(end, self._calls[index])
        figures = {"timings": timings(end.usage), "flashmoe": vendor(end.usage)}
        return self._chunk(index, {}, reason, **figures)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        head = self._shape.head("chat.completion.chunk")
        return event(head | {"choices": [choice]} | more)

    def _last(self) -> dict[str, Any]:
        usage = total_usage([end.usage for end in self._ends])
        reasoning = sum(end.reasoning_tokens for end in self._ends)
        head = self._shape.head("chat.completion.chunk")
        return head | {"choices": []} | self._shape.figures(usage, reasoning)


def _call_start(index: int, name: str, id: str | None) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    return {"index": index, "id": id or new_id("call_"), "type": "function", "function": function}


def prompt_progress(update: Prefill) -> dict[str, int]:
    """How far the prompt is, in llama.cpp's words."""
    return {"total": update.total, "cache": update.cached, "processed": update.done}
