"""Small vocabularies with the markers of each reply format, and replies run through parsers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashmoe.demo import demo_model_path
from flashmoe.parsers.base import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Reasoning,
    ReplyEvent,
    ReplyFormat,
    Tools,
)
from flashmoe.parsers.registry import reply_format
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer

# Template texts that show a format; the registry reads no more of a template.
SIGNS = {
    "plain": "",
    "hermes": "<tool_call>",
    "qwen_xml": "<tool_call><function=",
    "glm": "<tool_call><arg_key></arg_key>\\n",
    "kimi": "<|tool_call_begin|>",
    "deepseek": "<｜tool▁call▁begin｜>",  # noqa: RUF001
    "minimax": "<minimax:tool_call>",
    "dsml": "<｜DSML｜tool_calls>",  # noqa: RUF001
    "gemma": "<|tool_call>",
    "harmony": "<|channel|><|message|>",
}
_KIMI = ["section_begin", "section_end"]
MARKERS = {
    "plain": ["<think>", "</think>"],
    "hermes": ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    "qwen_xml": ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    "glm": [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"),
        *("<arg_value>", "</arg_value>"),
    ],
    "kimi": [
        *("<think>", "</think>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    ],
    "deepseek": [
        *("<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),  # noqa: RUF001
        *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),  # noqa: RUF001
    ],
    "minimax": ["<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"],
    "dsml": ["<think>", "</think>"],
    "gemma": ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'],
    "harmony": [
        *("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"),
        *("<|call|>", "<|end|>", "<|return|>"),
    ],
}


def vocabulary(directory: Path, markers: Iterable[str], template: str) -> Path:
    """A model directory's text files: the demo model's letters and merges, `markers` as tokens."""
    definition = json.loads((demo_model_path() / "tokenizer.json").read_text())
    kept = [token for token in definition["added_tokens"] if token["id"] < 3]
    taken = len(definition["model"]["vocab"])
    for number, marker in enumerate(markers):
        kept.append({**kept[0], "id": taken + number, "content": marker, "special": False})
    definition["added_tokens"] = kept
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    (directory / "chat_template.jinja").write_text(template)
    return directory


def made_format(directory: Path, name: str, *, as_tokens: bool = True) -> tuple[Tokenizer, Any]:
    """(tokenizer, reply format `name`), with its markers as tokens or as mere text."""
    source = "{# " + SIGNS[name] + " #}"
    vocabulary(directory, MARKERS[name] if as_tokens else (), source)
    tokenizer = Tokenizer(directory)
    reply = reply_format(tokenizer, ChatTemplate(directory))
    assert reply.name == name
    return tokenizer, reply


@dataclass
class Reply:
    """What a parser told, joined."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    ended: int = 0

    def add(self, event: ReplyEvent) -> None:
        """Takes the next event; calls come one after the other."""
        if isinstance(event, Reasoning):
            self.reasoning += event.text
        elif isinstance(event, Content):
            self.content += event.text
        elif isinstance(event, CallStart):
            assert event.index == len(self.calls)
            self.calls.append((event.name, ""))
            self.ids.append(event.id)
        elif isinstance(event, CallArguments):
            name, arguments = self.calls[event.index]
            self.calls[event.index] = (name, arguments + event.fragment)
        else:
            assert isinstance(event, CallEnd)
            assert event.index == self.ended
            self.ended += 1


def parsed(
    reply: ReplyFormat,
    steps: Sequence[tuple[int, str]],
    *,
    opens_reasoning: bool = False,
    tools: Tools = (),
) -> Reply:
    """The reply of tokens given as (id, text)."""
    parser, result = reply.parser(opens_reasoning, tools), Reply()
    for id, text in steps:
        for event in parser.push(id, text):
            result.add(event)
    for event in parser.finish():
        result.add(event)
    assert result.ended == len(result.calls)
    return result


def steps_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[int, str]]:
    """(id, text) as an engine gives them."""
    detokenizer = tokenizer.detokenizer(skip_special=False)
    return [(id, detokenizer.push([id])) for id in ids]


def events_of(text: str, tokenizer: Tokenizer, reply: ReplyFormat, **options: Any) -> Reply:
    """The reply `text`, tokenised as the model would."""
    return parsed(reply, steps_of(tokenizer, tokenizer.encode(text)), **options)
