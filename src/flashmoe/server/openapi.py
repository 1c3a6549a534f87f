"""GET /openapi.json: what the server takes and gives, for tools that generate clients and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from flashmoe import __version__
from flashmoe.server.requests import anthropic, ollama, openai
from flashmoe.server.wire import Json

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}


def _object(**fields: Schema) -> Schema:
    """An object in which all of `fields` are required; more may come."""
    return {"type": "object", "properties": fields, "required": sorted(fields)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


USAGE = _object(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
OPENAI_ERROR = _object(
    error=_object(message=TEXT, type=TEXT, param=_nullable(TEXT), code=_nullable(TEXT))
)
ANTHROPIC_ERROR = _object(type={"const": "error"}, error=_object(type=TEXT, message=TEXT))
OLLAMA_ERROR = _object(error=TEXT)
_MESSAGE = _object(role={"const": "assistant"}, content=_nullable(TEXT))
_CHOICE = _object(index=COUNT, message=_MESSAGE, finish_reason=TEXT, logprobs={})
_COMPLETION = _object(index=COUNT, text=TEXT, finish_reason=TEXT, logprobs={})
_MODEL = _object(id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT)
_OLLAMA_ANSWER = {"model": TEXT, "created_at": TEXT, "done": {"type": "boolean"}}


@dataclass(frozen=True)
class _Endpoint:
    """One operation. stream: media type of its streamed answer, if it has one."""

    path: str
    summary: str
    answer: Schema
    body: type[BaseModel] | None = None
    stream: str | None = None
    error: str = "OpenAIError"
    media: str = "application/json"
    parameter: str | None = None

    def operation(self) -> Schema:
        """The operation object."""
        content = {self.media: {"schema": self.answer}}
        if self.stream:
            content[self.stream] = {}  # OpenAPI 3.1 has no way to describe events
        found: Schema = {
            "summary": self.summary,
            "responses": {"200": {"description": "The answer", "content": content}},
        }
        refused = {"schema": {"$ref": f"#/components/schemas/{self.error}"}}
        found["responses"]["default"] = {
            "description": "An error",
            "content": {"application/json": refused},
        }
        if self.body is not None:
            schema = {"$ref": f"#/components/schemas/{self.body.__name__}"}
            content = {"application/json": {"schema": schema}}
            found["requestBody"] = {"required": True, "content": content}
        if self.parameter:
            place = {"name": self.parameter, "in": "path", "required": True, "schema": TEXT}
            found["parameters"] = [place]
        return found


_SSE, _LINES, _PLAIN = "text/event-stream", "application/x-ndjson", "text/plain"
_STATUS = _object(status=TEXT)
_TOKENS = _object(tokens=_list({}), count=COUNT)
_POSTS = (
    _Endpoint(
        "/v1/chat/completions",
        "Answer a conversation (OpenAI)",
        _object(
            id=TEXT, object=TEXT, created=COUNT, model=TEXT, choices=_list(_CHOICE), usage=USAGE
        ),
        openai.ChatBody,
        _SSE,
    ),
    _Endpoint(
        "/v1/completions",
        "Go on from a text (OpenAI)",
        _object(id=TEXT, object=TEXT, created=COUNT, choices=_list(_COMPLETION), usage=USAGE),
        openai.CompletionBody,
        _SSE,
    ),
    _Endpoint(
        "/v1/responses",
        "Answer a conversation (OpenAI Responses, without state)",
        _object(id=TEXT, object=TEXT, status=TEXT, output=_list(_object(id=TEXT, type=TEXT))),
        openai.ResponsesBody,
        _SSE,
    ),
    _Endpoint(
        "/v1/messages",
        "Answer a conversation (Anthropic)",
        _object(
            id=TEXT,
            type={"const": "message"},
            content=_list(_object(type=TEXT)),
            usage=_object(input_tokens=COUNT, output_tokens=COUNT),
        ),
        anthropic.MessagesBody,
        _SSE,
        "AnthropicError",
    ),
    _Endpoint(
        "/v1/messages/count_tokens",
        "Length of a conversation's prompt (Anthropic)",
        _object(input_tokens=COUNT),
        anthropic.CountBody,
        error="AnthropicError",
    ),
    _Endpoint(
        "/api/chat",
        "Answer a conversation (Ollama)",
        _object(message=_object(role=TEXT, content=TEXT), **_OLLAMA_ANSWER),
        ollama.OllamaChatBody,
        _LINES,
        "OllamaError",
    ),
    _Endpoint(
        "/api/generate",
        "Answer a prompt (Ollama)",
        _object(response=TEXT, **_OLLAMA_ANSWER),
        ollama.OllamaGenerateBody,
        _LINES,
        "OllamaError",
    ),
    _Endpoint(
        "/api/show",
        "Facts of the model (Ollama)",
        _object(details={"type": "object"}, capabilities=_list(TEXT)),
        ollama.ShowBody,
        error="OllamaError",
    ),
    _Endpoint("/tokenize", "Tokens of a text", _TOKENS, openai.TextBody),
    _Endpoint("/detokenize", "Text of tokens", _object(content=TEXT), openai.TokensBody),
    _Endpoint(
        "/apply-template",
        "Prompt of a conversation",
        _object(prompt=TEXT, tokens=_list(COUNT), count=COUNT),
        openai.TemplateBody,
    ),
)
_GETS = (
    _Endpoint("/health", "Whether the model is loaded", _STATUS),
    _Endpoint("/metrics", "Figures for Prometheus", TEXT, media=_PLAIN),
    _Endpoint("/slots", "What runs and what waits", _list(_object(id=COUNT, phase=TEXT))),
    _Endpoint("/v1/models", "The model", _object(object=TEXT, data=_list(_MODEL))),
    _Endpoint("/v1/models/{name}", "The model by its id", _MODEL, parameter="name"),
    _Endpoint("/api/tags", "The model (Ollama)", _object(models=_list(_object(name=TEXT)))),
    _Endpoint("/api/ps", "The loaded model (Ollama)", _object(models=_list(_object(name=TEXT)))),
    _Endpoint("/api/version", "Our version (Ollama)", _object(version=TEXT)),
)


@cache
def document() -> Schema:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Schema] = {}
    for method, endpoints in (("get", _GETS), ("post", _POSTS)):
        for endpoint in endpoints:
            paths.setdefault(endpoint.path, {})[method] = endpoint.operation()
    return {
        "openapi": "3.1.0",
        "info": {"title": "flashmoe", "version": __version__},
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": _KEYS},
        "security": [{"bearer": []}, {"header": []}, {}],
    }


_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def _schemas() -> Mapping[str, Schema]:
    """Bodies as pydantic tells them, and our errors."""
    found: dict[str, Schema] = {
        "OpenAIError": OPENAI_ERROR,
        "AnthropicError": ANTHROPIC_ERROR,
        "OllamaError": OLLAMA_ERROR,
    }
    for endpoint in _POSTS:
        assert endpoint.body is not None
        schema = endpoint.body.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[endpoint.body.__name__] = schema
    return found


async def openapi(request: Request) -> Response:
    """The document."""
    return Json(document())
