"""The `flashmoe` command: one module per verb, imported only when it is called for.

A verb may be a package with VERBS of its own (`flashmoe bench`): then it is a group of verbs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from flashmoe import __version__
from flashmoe.errors import FlashMoeError

# Module flashmoe.cli.<verb> exports the function <verb>; shown in this order.
VERBS = (
    "run",
    "chat",
    "serve",
    "pull",
    "plan",
    "list",
    "show",
    "rm",
    "pack",
    "calibrate",
    "info",
    "verify",
    "families",
    "eval",
    "synth",
    "trace",
    "bench",
    "doctor",
)

INTERRUPTED = 130

# Plain help and messages: boxes cost 0.1 s of start-up, and every pipe and log has to carry them.
_STYLE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}


class Verb(TyperCommand):
    """Shows its arguments in the usage line as the verb wrote them, without added brackets."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        parameters = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        shown = [p for p in parameters if not getattr(p, "hidden", False)]
        return ["[OPTIONS]", *(str(p.metavar or str(p.name).upper()) for p in shown)]


class VerbGroup(TyperGroup):
    """Imports verbs on demand and turns errors into a message and an exit code."""

    package: ClassVar[str] = __name__
    verbs: ClassVar[Sequence[str]] = VERBS
    default_verb: ClassVar[str | None] = None

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if self.default_verb and args and args[0] not in (*self.verbs, "--help"):
            args = [self.default_verb, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb for verb in self.verbs if find_spec(f"{self.package}.{verb}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"{self.package}.{cmd_name}")
        function = getattr(module, cmd_name)
        if hasattr(module, "VERBS"):
            return typer.main.get_command(_group_app(module, cmd_name, function))
        app = typer.Typer(**_STYLE)
        app.command(cmd_name, cls=Verb)(function)
        return typer.main.get_command(app)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FlashMoeError as error:
            _print_error(f"flashmoe: error: {error}")
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(INTERRUPTED) from interrupt


def _print_error(text: str) -> None:
    from flashmoe.cli.terminal import columns_of, wrapped

    print(wrapped(text, columns_of(sys.stderr), indent=2), file=sys.stderr)


def _group_app(module: Any, name: str, callback: Any) -> typer.Typer:
    """The verbs of a package as one command."""
    default = getattr(module, "DEFAULT_VERB", None)
    places = {"package": module.__name__, "verbs": module.VERBS, "default_verb": default}
    group = type("SubGroup", (VerbGroup,), places)
    app = typer.Typer(cls=group, name=name, no_args_is_help=True, **_STYLE)
    app.callback()(callback)
    return app


def make_app() -> typer.Typer:
    """The command as a typer application."""
    app = typer.Typer(
        cls=VerbGroup,
        name="flashmoe",
        no_args_is_help=True,
        **_STYLE,
    )
    app.callback()(_root)
    return app


def main() -> None:
    """Entry point of the `flashmoe` command."""
    _replace_closed_streams()
    try:
        make_app()()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _print_error(f"flashmoe: error: the output cannot be written: {error.strerror}")
        # What stdout still holds would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _replace_closed_streams() -> None:
    """Standard streams that were closed before the start (`>&-`) are empty ones from here on."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free descriptor: that of the stream itself.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flashmoe {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run Mixture-of-Experts language models far larger than memory."""
