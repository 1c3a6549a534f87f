"""Objects that several of OpenAI's APIs share: usage, log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashmoe.generate.request import Likely, Token, Usage

# The least that JSON can carry for "never": log probabilities of masked tokens are minus infinity.
_NEVER = -9999.0


def usage_object(usage: Usage, reasoning_tokens: int) -> dict[str, Any]:
    """usage of chat and completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    """logprobs of a chat choice."""
    return {"content": [token_logprob(token) for token in tokens], "refusal": None}


def token_logprob(token: Token) -> dict[str, Any]:
    """One token with its likeliest others."""
    return _scored(token) | {"top_logprobs": [_scored(other) for other in token.top]}


def _scored(token: Token | Likely) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": finite(token.logprob),
        "bytes": list(token.text.encode("utf-8")),
    }


def finite(logprob: float | None) -> float:
    """A log probability as JSON can carry it: at most 0, at least _NEVER."""
    return _NEVER if logprob is None else min(0.0, max(_NEVER, logprob))
