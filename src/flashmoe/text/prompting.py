"""A chat to a prompt: messages and tools through the model's template to token ids.

Clients' text can never become a control token (text/shield.py), whatever it says and wherever the
template puts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashmoe.errors import UsageError
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.messages import Message, move_reasoning, normalise
from flashmoe.text.shield import Shield
from flashmoe.text.tokenizer import Tokenizer

THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model gets it.

    opens_reasoning: it ends inside the reasoning part, where the answer goes on.
    closed_reasoning: it ends with a reasoning part that is over: the model is not to think.
    """

    ids: list[int]
    opens_reasoning: bool = False
    closed_reasoning: bool = False


def chat_prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
    continue_final: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """The prompt of a chat, ending where the assistant's answer begins.

    Args:
        messages: {"role", "content", ...}; arguments of tool calls may be JSON text.
        tools: JSON-schema tools, written into the prompt as the template does.
        enable_thinking: passed on under the names that templates use, if not None.
        continue_final: the answer goes on where the last message, the assistant's, breaks off.
        variables: more for the template (e.g. reasoning_effort); what it does not know, it ignores.

    Raises UsageError when there is no template, it refuses the messages, or one is malformed.
    """
    turns = move_reasoning(normalise(messages, strict=False))
    given: dict[str, Any] = {
        "messages": turns,
        "tools": list(tools or []),
        "variables": dict(variables or {}),
    }
    shield = Shield(tokenizer, "".join([*_texts(given), *template.sources.values()]))
    covered = [shield.message(turn) for turn in turns]
    mark = _mark_end(covered, shield) if continue_final else ""
    text = template.render(
        covered,
        tools=shield.data(given["tools"]),
        add_generation_prompt=not continue_final,
        enable_thinking=enable_thinking,
        variables=shield.fields(given["variables"]),
    )
    if mark:
        text = _cut(text, mark)
    ids = shield.encode(text)
    return Prompt(ids, *_reasoning(tokenizer, ids, continue_final))


def _mark_end(covered: list[dict[str, Any]], shield: Shield) -> str:
    last = covered[-1]
    if last["role"] != "assistant" or not isinstance(last.get("content"), str):
        raise UsageError("only an assistant's text can be continued", where="messages[-1]")
    mark = shield.mark()
    last["content"] += mark
    return mark


def _cut(text: str, mark: str) -> str:
    if mark not in text:
        raise UsageError("the chat template leaves out the message to continue", where="messages")
    return text[: text.rindex(mark)]


def _reasoning(tokenizer: Tokenizer, ids: Sequence[int], continued: bool) -> tuple[bool, bool]:
    """(inside a reasoning part, right after one) at the end of the prompt."""
    start, end = (_last(tokenizer, ids, marker) for marker in (THINK_START, THINK_END))
    latest = max(start, end)
    if latest < 0 or not (continued or _blank(tokenizer, ids[latest:])):
        return False, False
    return start > end, end > start


def _last(tokenizer: Tokenizer, ids: Sequence[int], marker: str) -> int:
    """Where the text after the last `marker` begins in `ids`; -1 without one."""
    id = tokenizer.token_id(marker)
    spelled = [id] if id is not None else tokenizer.encode_plain(marker)
    places = range(len(ids), len(spelled) - 1, -1)
    return next((at for at in places if list(ids[at - len(spelled) : at]) == spelled), -1)


def _blank(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    return not tokenizer.decode(ids, skip_special=False).strip()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for item in pair for text in _texts(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in _texts(item))
