"""Messages to prompt text, by the Jinja template that came with the model.

Templates are code from strangers: they run in Jinja's immutable sandbox, with the few extras that
published templates count on (raise_exception, strftime_now, tojson without ASCII escapes, break
and continue).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flashmoe.errors import PackError, UsageError
from flashmoe.text.json_file import read_object, read_text
from flashmoe.text.messages import Message, arguments_as_text, normalise

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"

# Templates ask for thinking under one of these names.
_THINKING = ("enable_thinking", "thinking")
# A chat with a call, to see how a template takes arguments.
_PROBE = {"city": "Rome"}
_CALL_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "f:0", "type": "function", "function": {"name": "f", "arguments": _PROBE}}
        ],
    },
]

# What template code can raise for messages that it was not written for.
_RENDER_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplate:
    """The chat template of a model directory: chat_template.jinja, else tokenizer_config.json.

    A model may have none: `sources` is then empty and render() raises UsageError.

    Raises:
        PackError: a template does not compile, or a file is damaged.
        StorageError: a file cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        config = read_object(directory / CONFIG_FILE)
        self.path, self.sources = _find_sources(directory, config)
        self._variables = {
            name: token_text(config.get(name)) for name in ("bos_token", "eos_token")
        }
        self._templates = {name: _compile(text, self.path) for name, text in self.sources.items()}

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text for `messages` ({"role", "content", …}) and JSON-schema `tools`.

        enable_thinking: passed on if not None; what it does is up to the template.
        variables: more for the template; they cannot replace what is passed here.
        Raises UsageError when there is no template or it refuses the messages.
        """
        own: dict[str, Any] = {**self._variables, "tools": list(tools) if tools else None}
        if enable_thinking is not None:
            own |= dict.fromkeys(_THINKING, enable_thinking)
        own["add_generation_prompt"] = add_generation_prompt
        template, turns = self._choose(bool(tools)), normalise(messages, strict=False)
        if self._pastes_arguments:
            turns = arguments_as_text(turns)
        try:
            return template.render({**(variables or {}), **own, "messages": turns})
        except _RENDER_ERRORS as error:
            normalise(messages)  # names the message whose arguments no template takes
            raise UsageError(
                f"the chat template refuses these messages ({error})", where=self.path
            ) from error

    @cached_property
    def _pastes_arguments(self) -> bool:
        """Whether the template wants a call's arguments as JSON text, not as a mapping."""
        template = self._templates.get("tool_use", self._templates.get("default"))
        if template is None:
            return False
        try:
            text = template.render(messages=_CALL_TURNS, tools=None, **self._variables)
        except _RENDER_ERRORS:
            return _takes_text(template, self._variables)
        # Pasted into text, a mapping looks as Python prints it.
        return str(_PROBE) in text

    def _choose(self, with_tools: bool) -> Template:
        names = ("tool_use", "default") if with_tools else ("default",)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        hint = "Give the prompt as plain text (--raw)."
        raise UsageError("the model has no chat template", where=self.path, hint=hint)


def _takes_text(template: Template, variables: Mapping[str, Any]) -> bool:
    turns = arguments_as_text(_CALL_TURNS)
    try:
        return json.dumps(_PROBE) in template.render(messages=turns, tools=None, **variables)
    except _RENDER_ERRORS:
        return False


def token_text(token: object) -> str:
    """The text of a token as tokenizer_config.json gives it: a string or {"content": …}."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _find_sources(directory: Path, config: Mapping[str, Any]) -> tuple[Path, dict[str, str]]:
    path = directory / TEMPLATE_FILE
    if path.exists():
        return path, {"default": read_text(path)}
    path, value = directory / CONFIG_FILE, config.get("chat_template")
    if value is None:
        return path, {}
    named = value if isinstance(value, list) else [{"name": "default", "template": value}]
    try:
        sources = {str(entry["name"]): entry["template"] for entry in named}
    except (TypeError, LookupError) as error:
        raise PackError("chat_template is neither text nor a list of named", where=path) from error
    return path, sources


def _compile(source: str, path: Path) -> Template:
    if not isinstance(source, str):
        raise PackError("chat template is not text", where=path, got=type(source).__name__)
    try:
        return _environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise PackError(f"chat template does not compile ({error})", where=path) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _to_json
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
