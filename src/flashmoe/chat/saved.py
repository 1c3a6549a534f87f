"""A chat as a JSON file: messages and settings."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashmoe.chat.options import HELP, Options
from flashmoe.errors import UsageError
from flashmoe.files import read_small, storage_errors, sync_directory
from flashmoe.strict_json import Fields, parse

FORMAT, VERSION = "flashmoe chat", 1
_LIMIT = 64 << 20


def save(path: Path, messages: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Write a chat; the file is the old one or the whole new one. Raises StorageError."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "settings": options.shown(),
        "messages": list(messages),
    }
    data = json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"
    with storage_errors("cannot save the chat", path):
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        draft = Path(name)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    sync_directory(path.parent)


def load(path: Path) -> tuple[list[dict[str, Any]], Options]:
    """Messages and settings of a file. Raises UsageError (not such a file), StorageError."""
    fields = Fields(
        parse(read_small(path, _LIMIT, UsageError), path, UsageError), str(path), UsageError
    )
    fields.choice("format", FORMAT)
    fields.integer("version", VERSION, VERSION)
    options = Options()
    settings = fields.fields("settings")
    for name in settings.names():
        if name not in HELP:
            settings.fail(name, ", ".join(HELP), name)
        options = options.changed(name, settings.string(name))
    items = enumerate(fields.items("messages"))
    messages = [_message(Fields(raw, f"{path}: messages[{i}]", UsageError)) for i, raw in items]
    fields.end()
    return messages, options


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.choice("role", "system", "user", "assistant", "tool")
    message: dict[str, Any] = {"role": role, "content": fields.string("content")}
    if role == "assistant" and fields.has("reasoning_content"):
        message["reasoning_content"] = fields.string("reasoning_content")
    if role == "assistant" and fields.has("tool_calls"):
        calls = enumerate(fields.items("tool_calls"))
        message["tool_calls"] = [
            _call(Fields(raw, f"{fields.where}: tool_calls[{i}]", fields.error)) for i, raw in calls
        ]
    if role == "tool":
        message |= {name: fields.string(name) for name in ("tool_call_id", "name")}
    fields.end()
    return message


def _call(fields: Fields) -> dict[str, Any]:
    function = fields.fields("function")
    call = {
        "id": fields.string("id"),
        "type": fields.choice("type", "function"),
        "function": {"name": function.text("name"), "arguments": function.string("arguments")},
    }
    function.end()
    fields.end()
    return call
