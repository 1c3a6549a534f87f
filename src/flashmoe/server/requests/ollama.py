"""Bodies of Ollama's API."""

from __future__ import annotations

from pydantic import Field

from flashmoe.server.requests.base import Body, Record


class Options(Body):
    """The sampling options of Ollama's API that mean something here."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-100, le=100)
    frequency_penalty: float | None = Field(default=None, ge=-100, le=100)
    seed: int | None = None
    num_predict: int | None = Field(default=None, ge=-2)
    num_ctx: int | None = None
    stop: str | list[str] | None = None


class OllamaAsked(Body):
    """What chat and generate have in common."""

    model: str | None = None
    format: str | Record | None = None
    options: Options | None = None
    think: bool | str | None = None
    stream: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)


class OllamaChatBody(OllamaAsked):
    """POST /api/chat."""

    messages: list[Record] | None = None
    tools: list[Record] | None = None


class OllamaGenerateBody(OllamaAsked):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    images: list[str] | None = None


class ShowBody(Body):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
