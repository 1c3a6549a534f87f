"""What a caller gives as a prompt, brought to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from flashmoe.errors import UsageError
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.messages import Message
from flashmoe.text.prompting import chat_prompt
from flashmoe.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


def prompt_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    prompt: Prompt | None = None,
    *,
    messages: Sequence[Message] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
) -> list[int]:
    """Ids of either `prompt` (text as it stands, or ids) or `messages` through the template.

    Raises UsageError when none or both are given, tools come without messages, or an id is not
    a non-negative integer. Ids past the vocabulary are the engine's to refuse.
    """
    if (prompt is None) == (messages is None):
        raise UsageError("give either a prompt or messages", where="generate")
    if messages is not None:
        chat = chat_prompt(
            template, tokenizer, messages, tools=tools, enable_thinking=enable_thinking
        )
        return chat.ids
    if tools:
        raise UsageError("tools need messages", where="tools")
    assert prompt is not None
    return tokenizer.encode(prompt) if isinstance(prompt, str) else _checked(prompt)


def _checked(ids: Sequence[int]) -> list[int]:
    for index, id in enumerate(ids):
        if not isinstance(id, Integral) or id < 0:
            raise UsageError("not a token id", where=f"prompt[{index}]", got=repr(id))
    return [int(id) for id in ids]
