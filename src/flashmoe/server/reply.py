"""Whole answers, gathered from the updates of their runs, for clients that do not stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flashmoe.generate.request import PromptScored, Token, Usage
from flashmoe.parsers.base import (
    CallArguments,
    CallStart,
    Content,
    Reasoning,
)
from flashmoe.server.answers import Answers, End, Part, Update
from flashmoe.server.ids import new_id


@dataclass
class Call:
    """A call of a function. arguments: JSON text, as the model wrote it."""

    name: str
    id: str
    arguments: str = ""

    @property
    def value(self) -> Any:
        """The arguments as an object; {} for none, text that is no JSON object under "input"."""
        try:
            value = json.loads(self.arguments or "{}")
        except ValueError:  # cut off by the limit of tokens
            return {"input": self.arguments}
        return value if isinstance(value, dict) else {"input": value}


@dataclass
class Reply:
    """One answer. content_tokens: the tokens of `content`, in order."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    content_tokens: list[Token] = field(default_factory=list)
    prompt_tokens: tuple[Token, ...] = ()
    end: End = field(default_factory=lambda: End("stop", None, Usage(), 0))

    def add(self, update: Update) -> None:
        """Take the next update in."""
        match update:
            case Part(Content(text), tokens):
                self.content += text
                self.content_tokens += tokens
            case Part(Reasoning(text)):
                self.reasoning += text
            case Part(CallStart(_, name, id)):
                self.calls.append(Call(name, id or new_id("call_")))
            case Part(CallArguments(index, fragment)):
                self.calls[index].arguments += fragment
            case PromptScored(tokens):
                self.prompt_tokens = tokens
            case End():
                self.end = update


async def gather(answers: Answers, choices: int) -> list[Reply]:
    """All answers, complete. Raises RequestError when one failed."""
    replies = [Reply() for _ in range(choices)]
    async for index, update in answers.updates():
        replies[index].add(update)
    return replies


def total(replies: Sequence[Reply]) -> Usage:
    """What the answers cost together; the prompt counts once."""
    return total_usage([reply.end.usage for reply in replies])


def total_usage(usages: Sequence[Usage]) -> Usage:
    """Sums; prompt and times are those of the largest: the answers run side by side."""
    return Usage(
        prompt_tokens=max(u.prompt_tokens for u in usages),
        cached_tokens=max(u.cached_tokens for u in usages),
        completion_tokens=sum(u.completion_tokens for u in usages),
        queue_seconds=max(u.queue_seconds for u in usages),
        prefill_seconds=max(u.prefill_seconds for u in usages),
        decode_seconds=max(u.decode_seconds for u in usages),
        expert_hits=sum(u.expert_hits for u in usages),
        expert_misses=sum(u.expert_misses for u in usages),
        bytes_read=sum(u.bytes_read for u in usages),
        lossy=next((u.lossy for u in usages if u.lossy), ""),
    )


# What every API adds to its own usage.


def timings(usage: Usage) -> dict[str, Any]:
    """Speeds under the names of llama.cpp's `timings`; times in milliseconds."""
    read = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": read,
        "prompt_ms": round(1e3 * usage.prefill_seconds, 3),
        "prompt_per_second": _rate(read, usage.prefill_seconds),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(1e3 * usage.decode_seconds, 3),
        "predicted_per_second": _rate(max(0, usage.completion_tokens - 1), usage.decode_seconds),
    }


def vendor(usage: Usage, **more: Any) -> dict[str, Any]:
    """Our own object: share of experts found in memory, gigabytes read, seconds waited.

    `lossy`: only where the answer is not the model's own, what made it so."""
    wanted = usage.expert_hits + usage.expert_misses
    figures = {
        "hit_rate": round(usage.expert_hits / wanted, 4) if wanted else None,
        "expert_hits": usage.expert_hits,
        "expert_misses": usage.expert_misses,
        "gb_read": round(usage.bytes_read / 1e9, 6),
        "queue_seconds": round(usage.queue_seconds, 3),
    }
    told = {"lossy": usage.lossy, **more}
    return figures | {name: value for name, value in told.items() if value}


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
