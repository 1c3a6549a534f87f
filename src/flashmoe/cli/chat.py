"""flashmoe chat: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashmoe.errors import UsageError

if TYPE_CHECKING:
    from flashmoe.api import Model
    from flashmoe.chat.keyboard import Keyboard
    from flashmoe.chat.options import Options
    from flashmoe.chat.tools import ToolBox
    from flashmoe.chat.view import View


def _option(flag: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(flag, help=help, metavar=metavar)


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            show_default=False,
            help="A packed model or a checkpoint; default: the demo model inside the package.",
        ),
    ] = None,
    system: Annotated[str | None, _option("--system", "System prompt.", "TEXT")] = None,
    system_file: Annotated[
        Path | None, _option("--system-file", "System prompt from a file.", "FILE")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _option("--set", "A setting, as /set in the chat; may be repeated.", "NAME=VALUE"),
    ] = None,
    load: Annotated[
        Path | None, _option("--load", "Go on with a saved chat, as /load.", "FILE")
    ] = None,
    tools: Annotated[
        list[str] | None,
        _option("--tools", "Built-in tools: bash.", "NAME"),
    ] = None,
    tool: Annotated[
        list[str] | None,
        _option("--tool", "A Python function as a tool; may be repeated.", "MODULE:FUNCTION"),
    ] = None,
    mcp: Annotated[
        list[str] | None,
        _option("--mcp", "Tools of an MCP server started so; may be repeated.", "COMMAND"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run every call without asking.")] = False,
    rounds: Annotated[int, _option("--rounds", "Most rounds of calls for one message.")] = 10,
    ram: Annotated[str | None, _option("--ram", "Hard memory limit, as 3G or 25%.", "SIZE")] = None,
    cache: Annotated[
        str | None, _option("--cache", "Memory for experts: auto, all, 0 or as 2G.", "SIZE")
    ] = None,
    prefix_ram: Annotated[
        str | None,
        _option("--prefix-ram", "Memory for states of prompts (hybrid models), kept.", "SIZE"),
    ] = None,
    threads: Annotated[int | None, _option("--threads", "Kernel threads.")] = None,
    ctx: Annotated[int | None, _option("--ctx", "Context length in tokens.")] = None,
    experts: Annotated[
        int | None,
        _option("--experts", "Experts per token, fewer than the model's own: lossy.", "K"),
    ] = None,
    routing: Annotated[
        str | None, _option("--routing", "Lossy routing: mass=0.9, ratio=0.3 and so on.", "RULES")
    ] = None,
    device: Annotated[str | None, _option("--device", "auto, cpu or cuda.", "NAME")] = None,
    vram: Annotated[
        str | None, _option("--vram", "Hard limit of memory on the card, as 20G or 50%.", "SIZE")
    ] = None,
    trace: Annotated[
        str | None, _option("--trace", "Record what routers say to a new file.", "FILE")
    ] = None,
) -> None:
    """Talk to a model. /help in the chat lists its commands.

    Ctrl-C stops an answer, Ctrl-D ends the chat. Without a terminal every line of stdin is a
    message, answers go to stdout and all else to stderr.
    """
    from flashmoe.chat.commands import read_text
    from flashmoe.chat.loop import Stop, from_keyboard, from_lines
    from flashmoe.chat.saved import load as saved
    from flashmoe.chat.session import Chat

    if system is not None and system_file is not None:
        raise UsageError("give one system prompt", where="--system, --system-file")
    if rounds < 1:
        raise UsageError("wrong value", where="--rounds", expected="at least 1", got=rounds)
    _require_extra(calls=bool(tools or tool or mcp))
    opening = read_text(system_file) if system_file is not None else system
    options = _options(settings or [])
    engine = {
        "ram": ram,
        "cache": cache,
        "prefix_ram": prefix_ram,
        "threads": threads,
        "context_length": ctx,
        "experts_per_token": experts,
        "routing": routing,
        "device": device,
        "vram": vram,
        "trace": trace,
    }
    given = {name: value for name, value in engine.items() if value is not None}
    with ExitStack() as stack:
        box = _toolbox(stack, tools or [], tool or [], mcp or [], yes)
        shown, keyboard = _view()
        loaded = _loaded(stack, model, given)
        stop = Stop()
        prefixes = loaded.prefix_cache() if prefix_ram is not None else None
        talk = Chat(loaded, shown, box, options, stop, rounds, prefixes)
        if load is not None:
            talk.messages, talk.options = saved(load)
        if opening is not None:
            talk.set_system(opening)
        if lossy := loaded.stats.lossy:
            shown.note(f"lossy: {lossy}")
        if keyboard is None:
            from_lines(talk, shown, sys.stdin)
            return
        shown.note(f"{model or 'the demo model'}, context {loaded.context_length} tokens; /help")
        from_keyboard(talk, shown, keyboard.message, stop)


def _loaded(stack: ExitStack, path: str | None, engine: dict[str, Any]) -> Model:
    """The model, closed with the stack."""
    import flashmoe
    from flashmoe.cli.terminal import StatusLine

    status = StatusLine(sys.stderr)
    status.show("loading the model …")
    try:
        return stack.enter_context(flashmoe.load(path, **engine))
    finally:
        status.clear()


def _view() -> tuple[View, Keyboard | None]:
    """What shows the chat, and the keyboard of a terminal."""
    from flashmoe.chat.view import PlainView

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return PlainView(sys.stdout, sys.stderr), None
    keyboard, screen = _terminal()
    return screen, keyboard


def _terminal() -> tuple[Keyboard, View]:
    """Keyboard and screen."""
    from rich.console import Console

    from flashmoe.chat.commands import HELP
    from flashmoe.chat.keyboard import Keyboard
    from flashmoe.chat.screen import Screen
    from flashmoe.settings import state_directory

    commands = [name.partition(" ")[0] for name in HELP]
    keyboard = Keyboard(state_directory() / "chat-history", commands)
    return keyboard, Screen(Console(), keyboard.ask)


def _toolbox(
    stack: ExitStack, builtin: list[str], functions: list[str], servers: list[str], yes: bool
) -> ToolBox:
    from flashmoe.chat.bash import bash_tool
    from flashmoe.chat.functions import function_tool
    from flashmoe.chat.mcp import mcp_tools
    from flashmoe.chat.tools import ToolBox

    unknown = [name for name in builtin if name != "bash"]
    if unknown:
        raise UsageError("unknown tool", where="--tools", expected="bash", got=", ".join(unknown))
    found = [bash_tool()] if builtin else []
    found += [function_tool(spec) for spec in functions]
    for command in servers:
        found += stack.enter_context(mcp_tools(command))
    return ToolBox(found, trusted=yes)


def _options(settings: list[str]) -> Options:
    from flashmoe.chat.options import Options

    options = Options()
    for setting in settings:
        name, _, value = setting.partition("=")
        options = options.changed(name, value)
    return options


def _require_extra(calls: bool) -> None:
    """Raises UsageError where a package of the extra is missing."""
    needed = ["prompt_toolkit", *(["llguidance", "mcp"] if calls else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} is not installed",
            where="flashmoe chat",
            hint="Run: pip install 'flashmoe[chat]'",
        )
