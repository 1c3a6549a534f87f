"""Chats with each family: turns as its template writes them, stop tokens, format of replies.

Published templates belong to their owners; those here write the same turns. No test has a
generation_config.json, which would name the stop tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from flashmoe.demo import demo_model_path
from flashmoe.models.registry import CHAT_FAMILIES
from flashmoe.parsers.registry import reply_format
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.stop_tokens import stop_ids
from flashmoe.text.tokenizer import Tokenizer

# A tool call of the history, which shows the format of replies.
CALLS = {
    "plain": "",
    "hermes": "<tool_call>\n</tool_call>",
    "qwen_xml": "<tool_call>\n<function=",
    "glm": "<tool_call>f\n<arg_key>k</arg_key>\n",
    "deepseek": "<｜tool▁call▁begin｜>",  # noqa: RUF001
    "minimax": "<minimax:tool_call>",
    "dsml": "<｜DSML｜tool_calls>",  # noqa: RUF001
    "harmony": "<|channel|>commentary<|message|>",
}


@dataclass(frozen=True)
class Chat:
    """How a family writes turns. roles: what opens each; end: what closes it; stops: the tokens
    that end an answer; opening: before the first turn; calls: of CALLS."""

    user: str
    assistant: str
    end: str
    stops: tuple[str, ...]
    opening: str = ""
    calls: str = "plain"
    eos: str = ""
    history: str = ""

    @property
    def template(self) -> str:
        """A Jinja template that writes such turns."""
        body = (
            "{{ opening }}{% for m in messages %}"
            "{{ user if m.role == 'user' else assistant }}{{ m.content }}{{ end }}"
            "{% if m.tool_calls %}{{ call }}{{ history }}{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}{{ assistant }}{% endif %}"
        )
        values = {**vars(self), "call": CALLS[self.calls]}
        names = ("opening", "user", "assistant", "end", "call", "history")
        sets = "".join(
            f"{{% set {n} = {json.dumps(values[n], ensure_ascii=False)} %}}" for n in names
        )
        return sets + body


_QWEN = Chat("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n", ("<|im_end|>",))
_DEEPSEEK = Chat(
    "<｜User｜>",  # noqa: RUF001
    "<｜Assistant｜>",  # noqa: RUF001
    "",
    ("<｜end▁of▁sentence｜>",),  # noqa: RUF001
    opening="<｜begin▁of▁sentence｜>",  # noqa: RUF001
    calls="deepseek",
    eos="<｜end▁of▁sentence｜>",  # noqa: RUF001
)
CHATS = {
    "qwen3_moe": Chat(**{**vars(_QWEN), "calls": "hermes"}),
    "qwen3_next": Chat(**{**vars(_QWEN), "calls": "qwen_xml"}),
    "qwen3_5_moe": Chat(**{**vars(_QWEN), "calls": "qwen_xml"}),
    "gpt_oss": Chat(
        "<|start|>user<|message|>",
        "<|start|>assistant",
        "<|end|>",
        ("<|return|>", "<|call|>"),
        calls="harmony",
        history="<|call|><|return|>",
    ),
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": Chat(**{**vars(_DEEPSEEK), "calls": "dsml"}),
    "deepseek_v4": Chat(**{**vars(_DEEPSEEK), "calls": "dsml"}),
    "mixtral": Chat("[INST] ", "", " [/INST]", ("</s>",), opening="<s>", eos="</s>"),
    "olmoe": Chat("<|user|>\n", "<|assistant|>\n", "\n", ("<|endoftext|>",), eos="<|endoftext|>"),
    "glm4_moe": Chat(
        "<|user|>\n",
        "<|assistant|>\n",
        "",
        ("<|user|>", "<|observation|>"),
        opening="[gMASK]<sop>",
        calls="glm",
        history="<|observation|>",
    ),
    "minimax_m2": Chat("]~b]user\n", "]~b]ai\n", "[e~[\n", ("[e~[",), "]~!b[", calls="minimax"),
    # Calls of Gemma 4 are not taken apart yet.
    "gemma4": Chat(
        "<|turn>user\n",
        "<|turn>model\n",
        "<turn|>\n",
        ("<turn|>", "<|tool_response>"),
        opening="<bos>",
        history="<|tool_response>",
    ),
}
# Texts that are no tokens of their own in the family's vocabulary.
_PLAIN = {"olmoe": ("<|user|>",)}


def write_vocabulary(directory: Path, tokens: list[str]) -> dict[str, int]:
    """The demo model's tokenizer with these tokens added -> their ids."""
    vocabulary = json.loads((demo_model_path() / "tokenizer.json").read_text(encoding="utf-8"))
    like = {**vocabulary["added_tokens"][0], "special": True}
    known = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    first = 1 + max([*known.values(), *vocabulary["model"]["vocab"].values()])
    new = [token for token in dict.fromkeys(tokens) if token not in known]
    ids = known | {token: first + n for n, token in enumerate(new)}
    vocabulary["added_tokens"] += [{**like, "id": ids[t], "content": t} for t in new]
    (directory / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return ids


def test_every_family_has_its_chat() -> None:
    """What docs/models.md says is tested is what is tested."""
    assert {*CHATS} == CHAT_FAMILIES


@pytest.mark.parametrize("family", sorted(CHATS))
def test_turns_stop_tokens_and_format(family: str, tmp_path: Path) -> None:
    chat = CHATS[family]
    marks = [chat.user.strip(), chat.end.strip(), *chat.stops]
    ids = write_vocabulary(tmp_path, [m for m in marks if m and m not in _PLAIN.get(family, ())])
    config = {"chat_template": chat.template, "eos_token": chat.eos or None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    template, tokenizer = ChatTemplate(tmp_path), Tokenizer(tmp_path)
    turns = [("user", "Hello"), ("assistant", "Hi"), ("user", "Why?")]
    prompt = template.render([{"role": role, "content": text} for role, text in turns])
    opened = {"user": chat.user, "assistant": chat.assistant}
    written = "".join(opened[role] + text + chat.end for role, text in turns)
    assert prompt == chat.opening + written + chat.assistant
    assert stop_ids(tmp_path, tokenizer, template) == {ids[token] for token in chat.stops}
    assert reply_format(tokenizer, template).name == chat.calls
