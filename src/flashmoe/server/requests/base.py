"""What the bodies of several APIs have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Record = dict[str, Any]


class Body(BaseModel):
    """Strict about types ("7" is no number), silent about fields that it does not know."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Sampling(Body):
    """Sampling fields under the names that OpenAI, llama.cpp and vLLM share; null: the default."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-100, le=100)
    frequency_penalty: float | None = Field(default=None, ge=-100, le=100)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, ge=1)
    priority: int | None = Field(default=None, ge=-100, le=100)


class Constrained(Body):
    """Fields that constrain the answer's form."""

    response_format: Record | None = None
    grammar: str | None = None
    regex: str | None = None
    lark: str | None = None
    json_schema: Record | None = None


class Thinking(Body):
    """Fields that say how much the model thinks first."""

    enable_thinking: bool | None = None
    chat_template_kwargs: Record | None = None
    reasoning_effort: str | None = None
    thinking_budget: int | None = Field(default=None, ge=0)


class StreamOptions(Body):
    """stream_options of OpenAI's APIs."""

    include_usage: bool | None = None
