"""Bodies of OpenAI's APIs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flashmoe.server.requests.base import (
    Body,
    Constrained,
    Record,
    Sampling,
    StreamOptions,
    Thinking,
)

TokenId = Annotated[int, Field(ge=0)]


class ChatBody(Sampling, Constrained, Thinking):
    """POST /v1/chat/completions."""

    model: str | None = None
    messages: list[Record] = Field(min_length=1)
    tools: list[Record] | None = None
    tool_choice: str | Record | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    max_completion_tokens: int | None = Field(default=None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class CompletionBody(Sampling, Constrained):
    """POST /v1/completions."""

    model: str | None = None
    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    suffix: str | None = None
    best_of: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None


class Reasoning(Body):
    """reasoning of the Responses API."""

    effort: str | None = None


class TextFormat(Body):
    """text of the Responses API."""

    format: Record | None = None


class ResponsesBody(Sampling, Thinking):
    """POST /v1/responses."""

    model: str | None = None
    input: str | list[Record] | None = None
    instructions: str | None = None
    tools: list[Record] | None = None
    tool_choice: str | Record | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    top_logprobs: int | None = Field(default=None, ge=0)
    include: list[str] | None = None
    text: TextFormat | None = None
    reasoning: Reasoning | None = None
    metadata: Record | None = None
    previous_response_id: str | None = None
    conversation: str | Record | None = None
    background: bool | None = None
    store: bool | None = None
    prompt: Record | None = None
    truncation: str | None = None
    stream: bool | None = None


class TextBody(Body):
    """POST /tokenize."""

    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class TokensBody(Body):
    """POST /detokenize."""

    tokens: list[TokenId]


class TemplateBody(Thinking):
    """POST /apply-template."""

    messages: list[Record] = Field(min_length=1)
    tools: list[Record] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
