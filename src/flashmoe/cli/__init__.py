"""The `flashmoe` command: one module per verb, imported only when it is called for."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from flashmoe import __version__
from flashmoe.errors import FlashMoeError

# Module flashmoe.cli.<verb> exports the function <verb>; shown in this order.
VERBS = ("run", "pack", "info", "verify", "eval", "synth")

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

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb for verb in VERBS if find_spec(f"{__name__}.{verb}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        app = typer.Typer(**_STYLE)
        app.command(cmd_name, cls=Verb)(getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name))
        return typer.main.get_command(app)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FlashMoeError as error:
            print(f"flashmoe: error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(INTERRUPTED) from interrupt


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
    make_app()()


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
