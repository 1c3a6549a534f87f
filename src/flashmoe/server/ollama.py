"""Ollama's API: POST /api/chat and /api/generate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError
from flashmoe.generate.request import Usage
from flashmoe.parsers.base import CallEnd, Content, Reasoning
from flashmoe.server.answers import Answers, End, Part
from flashmoe.server.errors import ollama_error
from flashmoe.server.messages import chat_messages, chat_tools
from flashmoe.server.openai_shapes import token_logprob
from flashmoe.server.reply import Call, Reply, vendor
from flashmoe.server.requests.base import Record
from flashmoe.server.requests.ollama import (
    OllamaAsked,
    OllamaChatBody,
    OllamaGenerateBody,
    Options,
)
from flashmoe.server.sampling import plain_options
from flashmoe.server.service import Service, body_of, service_of, whole
from flashmoe.server.task import Asked, ChatTask, Form, check_count, stop_strings
from flashmoe.server.wire import Json, line

MEDIA = "application/x-ndjson"


async def chat(request: Request) -> Response:
    """Answers a conversation; streams lines of JSON unless told not to."""
    service, body = service_of(request), await body_of(request, OllamaChatBody)
    served = service.model()
    if not body.messages:
        return _loaded(served.name, _chat_fields)
    task, key = chat_task(body, service), service.run_key(request, body)
    answers = await service.ask(lambda: served.chat(task, key))
    return await _respond(request, body, answers, _chat_fields)


async def generate(request: Request) -> Response:
    """Answers one prompt, by the template or raw."""
    service, body = service_of(request), await body_of(request, OllamaGenerateBody)
    served, key = service.model(), service.run_key(request, body)
    if not body.prompt:
        return _loaded(served.name, _generate_fields)
    if body.suffix or body.images:
        raise RequestError("this model takes one prompt of text: no suffix, no images")
    asked, prompt = _asked(body, service), body.prompt
    if body.raw:
        encode = served.tokenizer.encode
        answers = await service.ask(lambda: served.completion(encode(prompt), asked, key, None))
    else:
        task = _generate_task(body, prompt, asked)
        answers = await service.ask(lambda: served.chat(task, key))
    return await _respond(request, body, answers, _generate_fields)


def chat_task(body: OllamaChatBody, service: Service) -> ChatTask:
    """The body in the form that is run. Raises RequestError."""
    limits = service.settings.limits
    given = [_openai_message(m, f"messages[{i}]") for i, m in enumerate(body.messages or ())]
    return ChatTask(
        messages=chat_messages(given, limits),
        asked=_asked(body, service),
        tools=chat_tools(body.tools, None, None, limits),
        thinking=_thinking(body.think),
        variables={"reasoning_effort": body.think} if isinstance(body.think, str) else {},
    )


def _generate_task(body: OllamaGenerateBody, prompt: str, asked: Asked) -> ChatTask:
    messages = [{"role": "user", "content": prompt}]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    return ChatTask(messages, asked, thinking=_thinking(body.think))


def _openai_message(message: Record, where: str) -> Record:
    if message.get("images"):
        raise RequestError(f"{where}.images: this model takes text only", param=f"{where}.images")
    named = {"reasoning_content": message.get("thinking"), "name": message.get("tool_name")}
    return message | {name: value for name, value in named.items() if value}


def _thinking(think: bool | str | None) -> bool | None:
    return think if think is None or isinstance(think, bool) else think != "none"


def _asked(body: OllamaAsked, service: Service) -> Asked:
    options, limits = body.options or Options(), service.settings.limits
    chosen = plain_options(options, service.model().defaults)
    if options.repeat_penalty is not None:
        chosen["repeat_penalty"] = options.repeat_penalty
    chosen["seed"] = options.seed
    chosen["stop"] = stop_strings(options.stop, limits, "options.stop")
    most = options.num_predict if options.num_predict is not None else -1
    check_count("top_logprobs", body.top_logprobs or 0, limits.top_logprobs)
    scored = (body.top_logprobs or 0) if body.logprobs else None
    return Asked(chosen, None if most < 0 else most, scored, form=_form(body.format))


def _form(given: str | Record | None) -> Form | None:
    if isinstance(given, dict):
        return Form("json_schema", given)
    if given in (None, ""):
        return None
    if given == "json":
        return Form("json_object")
    raise RequestError('format: expected "json" or a schema', param="format")


# Answers.

Fields = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]
"""(text, thinking, calls) -> the fields of an object that carry them."""


def _chat_fields(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def _generate_fields(text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"response": text} | ({"thinking": thinking} if thinking else {})


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "function": {"name": call.name, "arguments": call.value}}


def _loaded(model: str, fields: Fields) -> Json:
    """The answer to a client that only wants the model to be there."""
    return Json(_head(model) | fields("", "", []) | {"done": True, "done_reason": "load"})


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat()}


async def _respond(
    request: Request, body: OllamaAsked, answers: Answers, fields: Fields
) -> Response:
    service = service_of(request)
    writer = _Writer(service.model().name, fields, bool(body.logprobs))
    if body.stream is False:
        return await whole(request, answers, 1, writer.whole)
    return service.stream(answers, writer.lines(answers), MEDIA, line(writer.object()))


@dataclass(frozen=True)
class _Writer:
    """Updates to lines of JSON."""

    model: str
    fields: Fields
    logprobs: bool

    def object(
        self, text: str = "", thinking: str = "", calls: Sequence[Call] = ()
    ) -> dict[str, Any]:
        """One line of a stream."""
        told = self.fields(text, thinking, [_call(call) for call in calls])
        return _head(self.model) | told | {"done": False}

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The complete answer."""
        reply = replies[0]
        told = self.object(reply.content, reply.reasoning, reply.calls)
        if self.logprobs:
            told["logprobs"] = [token_logprob(token) for token in reply.content_tokens]
        return told | _done(reply.end)

    async def lines(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """The stream. Ollama's clients expect every call whole."""
        reply = Reply()
        try:
            async for _, update in answers.updates():
                reply.add(update)
                match update:
                    case Part(Content(text), tokens):
                        scores = [token_logprob(token) for token in tokens]
                        more = {"logprobs": scores} if self.logprobs else {}
                        yield line(self.object(text) | more)
                    case Part(Reasoning(text)):
                        yield line(self.object(thinking=text))
                    case Part(CallEnd(index)):
                        yield line(self.object(calls=[reply.calls[index]]))
                    case End():
                        yield line(self.object() | _done(update))
        except RequestError as error:
            yield line(ollama_error(error))


def _done(end: End) -> dict[str, Any]:
    usage = end.usage
    return (
        {"done": True, "done_reason": end.reason} | _durations(usage) | {"flashmoe": vendor(usage)}
    )


def _durations(usage: Usage) -> dict[str, int]:
    """Counts, and times in nanoseconds."""
    all_seconds = usage.queue_seconds + usage.prefill_seconds + usage.decode_seconds
    return {
        "total_duration": int(1e9 * all_seconds),
        "load_duration": int(1e9 * usage.queue_seconds),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": int(1e9 * usage.prefill_seconds),
        "eval_count": usage.completion_tokens,
        "eval_duration": int(1e9 * usage.decode_seconds),
    }
