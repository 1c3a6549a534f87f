"""Bodies of Anthropic's API."""

from __future__ import annotations

from pydantic import Field

from flashmoe.server.requests.base import Body, Record


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[Record] = Field(min_length=1)
    system: str | list[Record] | None = None
    tools: list[Record] | None = None
    tool_choice: Record | None = None
    thinking: Record | None = None
    output_config: Record | None = None
    output_format: Record | None = None


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    stop_sequences: list[str] | None = None
    stream: bool | None = None
