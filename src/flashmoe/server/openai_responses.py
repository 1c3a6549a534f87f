"""POST /v1/responses, without memory between requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError
from flashmoe.server.answers import Answers, Part
from flashmoe.server.ids import new_id
from flashmoe.server.reply import Reply, timings, vendor
from flashmoe.server.requests.openai import ResponsesBody
from flashmoe.server.responses_items import Writer, items_of
from flashmoe.server.responses_shapes import (
    conversation,
    refuse_state,
    response_form,
    response_tools,
)
from flashmoe.server.sampling import asked_of, template_variables, thinking_of
from flashmoe.server.service import Service, body_of, service_of, whole
from flashmoe.server.task import ChatTask

_LOGPROBS = "message.output_text.logprobs"


async def responses(request: Request) -> Response:
    """Answers a conversation, whole or as server-sent events."""
    service, body = service_of(request), await body_of(request, ResponsesBody)
    refuse_state(body)
    served, task = service.model(), responses_task(body, service)
    key = service.run_key(request, body)
    answers = await service.ask(lambda: served.chat(task, key))
    shape = _Shape(served.name, body, task)
    if not body.stream:
        return await whole(request, answers, 1, lambda replies: shape.whole(replies[0]))
    return service.stream(answers, _chunks(shape, answers), "text/event-stream")


def responses_task(body: ResponsesBody, service: Service) -> ChatTask:
    """The body in the form that is run. Raises RequestError."""
    limits = service.settings.limits
    if body.reasoning and body.reasoning.effort is not None:
        body = body.model_copy(update={"reasoning_effort": body.reasoning.effort})
    scored = body.top_logprobs is not None or _LOGPROBS in (body.include or ())
    return ChatTask(
        messages=conversation(body, limits),
        asked=asked_of(
            body.model_copy(update={"n": 1}),
            limits,
            service.model().defaults,
            max_tokens=body.max_output_tokens,
            top_logprobs=(body.top_logprobs or 0) if scored else None,
            form=response_form(body),
        ),
        tools=response_tools(body, limits),
        thinking=thinking_of(body),
        thinking_budget=body.thinking_budget,
        variables=template_variables(body),
    )


@dataclass(frozen=True)
class _Shape:
    """The response object, as it stands at any moment."""

    model: str
    body: ResponsesBody
    task: ChatTask
    id: str = field(default_factory=lambda: new_id("resp_"))
    created: float = field(default_factory=lambda: float(int(time())))

    def at(self, status: str, output: Sequence[dict[str, Any]] = (), **more: Any) -> dict[str, Any]:
        """The response with a status and what has been put out."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "model": self.model,
            "output": list(output),
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **self._asked(),
            **more,
        }

    def _asked(self) -> dict[str, Any]:
        """What was asked for, as clients want to see it again."""
        body, options = self.body, self.task.asked.sampling
        return {
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": self.task.tools.parallel,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None},
            "store": False,
            "temperature": options.get("temperature", 0.0),
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": options.get("top_p", 1.0),
            "truncation": "disabled",
            "background": False,
        }

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The complete response."""
        return self.finished(reply, [item.done() for item in items_of(reply)])

    def finished(self, reply: Reply, output: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The response at its end: completed, or incomplete for want of tokens."""
        cut = reply.end.reason == "length"
        details = {"reason": "max_output_tokens"} if cut else None
        more = {"incomplete_details": details, **_figures(reply, self.task)}
        return self.at("incomplete" if cut else "completed", output, **more)


def _figures(reply: Reply, task: ChatTask) -> dict[str, Any]:
    usage = reply.end.usage
    told = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reply.end.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    ignored = list(task.tools.ignored)
    return {
        "usage": told,
        "timings": timings(usage),
        "flashmoe": vendor(usage, ignored_tools=ignored),
    }


async def _chunks(shape: _Shape, answers: Answers) -> AsyncGenerator[bytes, None]:
    writer, reply = Writer(), Reply()
    for kind in ("response.created", "response.in_progress"):
        yield writer.event(kind, response=shape.at("in_progress"))
    try:
        async for _, update in answers.updates():
            reply.add(update)
            for chunk in _part(writer, update):
                yield chunk
        for chunk in writer.close():
            yield chunk
        response = shape.finished(reply, writer.output)
        yield writer.event(f"response.{response['status']}", response=response)
    except RequestError as error:
        told = {"code": error.code or "server_error", "message": str(error)}
        yield writer.event("response.failed", response=shape.at("failed", error=told))


def _part(writer: Writer, update: object) -> Iterator[bytes]:
    if isinstance(update, Part):
        yield from writer.part(update)
