"""Tools of MCP servers, started as commands and spoken to over their stdin and stdout."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from flashmoe.chat.tools import Tool
from flashmoe.errors import ToolError, UsageError

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client
    from mcp.types import CallToolResult

Result = TypeVar("Result")

# Seconds that a server may take for one answer.
TIME_LIMIT = 120.0


@contextmanager
def mcp_tools(command: str) -> Iterator[list[Tool]]:
    """The tools of the server that `command` starts; it ends with the block.

    Raises UsageError when the server cannot be started or does not answer.
    """
    from anyio.from_thread import start_blocking_portal
    from mcp import Client, StdioServerParameters

    words = _words(command)
    server = StdioServerParameters(command=words[0], args=words[1:])
    client = Client(server, read_timeout_seconds=TIME_LIMIT)
    with start_blocking_portal() as portal:
        manager = portal.wrap_async_context_manager(client)
        entered = _started(manager.__enter__, command)
        try:
            yield [_tool(portal, entered, tool) for tool in _listed(portal, entered, command)]
        finally:
            manager.__exit__(None, None, None)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"not a command ({error})", where="--mcp", got=repr(command)) from error
    if not words:
        raise UsageError("the command is empty", where="--mcp")
    return words


def _started(start: Callable[[], Result], command: str) -> Result:
    try:
        return start()
    except Exception as error:  # The package lets through what its tasks raise, also in groups.
        what = f"the server cannot be started ({_innermost(error)})"
        raise UsageError(what, where=f"--mcp {command!r}") from error


def _listed(portal: BlockingPortal, client: Client, command: str) -> list[Any]:
    tools: list[Any] = []
    cursor = None
    while True:
        page = _started(partial(portal.call, partial(client.list_tools, cursor=cursor)), command)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools


def _tool(portal: BlockingPortal, client: Client, tool: Any) -> Tool:
    def run(arguments: Mapping[str, Any]) -> str:
        try:
            result = portal.call(client.call_tool, tool.name, dict(arguments))
        except Exception as error:  # As above.
            raise ToolError(str(_innermost(error)), where=tool.name) from error
        return _text(result, tool.name)

    return Tool(tool.name, tool.description or "", tool.input_schema, run)


def _text(result: CallToolResult, name: str) -> str:
    """The text of a result; other kinds of content are only named."""
    parts = [
        part.text if part.type == "text" else f"[{part.type} content, not shown]"
        for part in result.content
    ]
    text = "\n".join(parts)
    if result.is_error:
        raise ToolError(text or "failed", where=name)
    return text


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
