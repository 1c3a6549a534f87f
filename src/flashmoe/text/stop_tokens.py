"""Which tokens end an answer.

Published files disagree: config.json may name only the end of a document, so that a chat would
never stop. The set is therefore the union of every source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashmoe.errors import PackError
from flashmoe.text.chat_template import CONFIG_FILE, ChatTemplate, token_text
from flashmoe.text.json_file import read_object
from flashmoe.text.tokenizer import Tokenizer

# Tokens that end an assistant's turn in a template that writes them. GLM has none: its models end
# by opening the next turn, as Gemma 4's do to be told what a tool returned.
CHAT_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|return|>",
    "<|call|>",
    "[e~[",
    "<|user|>",
    "<|observation|>",
    "<|tool_response>",
)


def stop_ids(directory: Path, tokenizer: Tokenizer, template: ChatTemplate) -> frozenset[int]:
    """Ids of generation_config, config and tokenizer_config, and of chat ends in the template.

    Raises PackError when an eos_token_id is neither an id nor a list of ids.
    """
    ids = _declared(directory / "generation_config.json") | _declared(directory / "config.json")
    eos = token_text(read_object(directory / CONFIG_FILE).get("eos_token"))
    ends = [end for end in CHAT_ENDS if any(end in text for text in template.sources.values())]
    named = (tokenizer.token_id(token) for token in [eos, *ends])
    return frozenset(ids | {id for id in named if id is not None})


def _declared(path: Path) -> set[int]:
    config = read_object(path)
    text_config = config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    return _ids(config.get("eos_token_id"), path) | _ids(nested.get("eos_token_id"), path)


def _ids(value: Any, path: Path) -> set[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(id) is int and id >= 0 for id in ids):
        raise PackError("eos_token_id is neither an id nor a list of ids", where=path, got=value)
    return set(ids)
