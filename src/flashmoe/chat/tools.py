"""Tools that the model may call: what they are, who allows a call, what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from flashmoe.chat.reply import Call
from flashmoe.errors import ToolError, UsageError

# What a model is given back of a tool: more would fill its context.
MAX_OUTPUT = 16_000


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    parameters: JSON schema of the arguments. run: arguments to text; raises ToolError.
    subject: the argument that is shown and edited alone when the user is asked, if any.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], str] = field(repr=False)
    subject: str | None = None

    def as_schema(self) -> dict[str, Any]:
        """As the chat format has it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}

    def shown(self, arguments: Mapping[str, Any]) -> str:
        """What a user is to allow."""
        if self.subject is not None and isinstance(arguments.get(self.subject), str):
            return str(arguments[self.subject])
        return json.dumps(arguments, ensure_ascii=False)

    def edited(self, arguments: Mapping[str, Any], text: str) -> dict[str, Any]:
        """The arguments after the user changed what was shown. Raises UsageError."""
        if self.subject is not None:
            return {**arguments, self.subject: text}
        return Call("", self.name, text).values()


Answer = Literal["yes", "no", "always"]


class Asks(Protocol):
    """Who decides about a call."""

    def allow(self, name: str, text: str) -> tuple[Answer, str]:
        """name: of the tool; text: what it would do -> the decision, and the text as edited."""


@dataclass(frozen=True)
class Outcome:
    """What the model is told of a call. ran: the tool was run and did its work."""

    text: str
    ran: bool


class ToolBox:
    """The tools of a chat.

    trusted: every call is allowed. Raises UsageError when two tools have one name.
    """

    def __init__(self, tools: Sequence[Tool], trusted: bool = False) -> None:
        self._tools = {tool.name: tool for tool in tools}
        if len(self._tools) < len(tools):
            names = [tool.name for tool in tools]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UsageError("two tools have the same name", where="tools", got=", ".join(twice))
        self._trusted, self._always = trusted, set[str]()

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools as the chat template gets them."""
        return [tool.as_schema() for tool in self._tools.values()]

    def carry_out(self, call: Call, user: Asks) -> Outcome:
        """Run a call if the user allows it; whatever goes wrong is told to the model."""
        try:
            tool, arguments = self._tools.get(call.name), call.values()
            if tool is None:
                raise ToolError("there is no such tool", where=call.name)
            allowed = self._allowed(tool, arguments, user)
            if allowed is None:
                return Outcome("The user did not allow this call.", ran=False)
            return Outcome(cut(tool.run(allowed)), ran=True)
        except (ToolError, UsageError) as error:
            return Outcome(f"error: {error}", ran=False)

    def _allowed(
        self, tool: Tool, arguments: dict[str, Any], user: Asks
    ) -> Mapping[str, Any] | None:
        """The arguments to run it with, or None."""
        if self._trusted or tool.name in self._always:
            return arguments
        before = tool.shown(arguments)
        answer, text = user.allow(tool.name, before)
        if answer == "no":
            return None
        if answer == "always":
            self._always.add(tool.name)
        return arguments if text == before else tool.edited(arguments, text)


def cut(text: str, limit: int = MAX_OUTPUT) -> str:
    """`text`, its middle left out and counted where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out ...]\n{text[-half:]}"
