"""What begins with a slash."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flashmoe.chat.options import HELP as SETTINGS
from flashmoe.chat.saved import load, save
from flashmoe.chat.session import Chat
from flashmoe.chat.view import View, footer
from flashmoe.errors import UsageError
from flashmoe.files import read_small

_SYSTEM_LIMIT = 1 << 20

HELP = {
    "/help": "this list",
    "/system TEXT|@FILE": "another system prompt; alone: show it",
    "/set NAME VALUE": "change a setting; alone: show all",
    "/save FILE": "write messages and settings as JSON",
    "/load FILE": "go on with a saved chat",
    "/stats": "figures of the latest answer",
    "/retry": "answer the last message again",
    "/clear": "forget the messages, keep the system prompt",
    "/quit": "end (as Ctrl-D)",
}


class Commands:
    """Carries commands out on a chat."""

    def __init__(self, chat: Chat, view: View) -> None:
        self._chat, self._view = chat, view
        self._known: Mapping[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._stats,
            "/retry": lambda _: chat.retry(),
            "/clear": self._clear,
        }

    def run(self, line: str) -> bool:
        """Carry out "/name argument" -> whether the chat goes on.

        Raises UsageError for an unknown command or a wrong argument, StorageError for a file.
        """
        name, _, argument = line.strip().partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name not in self._known:
            raise UsageError("unknown command", where=name, expected=", ".join(self._known))
        self._known[name](argument.strip())
        return True

    def _help(self, _: str) -> None:
        self._view.table(HELP)

    def _system(self, argument: str) -> None:
        if argument:
            self._chat.set_system(system_text(argument))
        self._view.note(self._chat.system or "(no system prompt)")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if not name:
            self._list_settings()
        elif not value:
            raise UsageError("no value", where=f"/set {name}", expected="/set NAME VALUE")
        else:
            self._chat.options = self._chat.options.changed(name, value.strip())

    def _list_settings(self) -> None:
        values = self._chat.options.shown()
        self._view.table({f"{name} {values[name]}": text for name, text in SETTINGS.items()})

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save")
        save(path, self._chat.messages, self._chat.options)
        self._view.note(f"{len(self._chat.messages)} messages saved to {path}")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load")
        self._chat.messages, self._chat.options = load(path)
        self._view.note(f"{len(self._chat.messages)} messages from {path}")

    def _stats(self, _: str) -> None:
        figures = self._chat.figures
        text = "no answer yet" if figures is None else footer(figures, 1000).replace(" | ", "\n")
        self._view.note(text)

    def _clear(self, _: str) -> None:
        self._chat.clear()
        self._view.note("the messages are forgotten")


def system_text(given: str) -> str:
    """TEXT, or what is in FILE for @FILE. Raises UsageError, StorageError."""
    return read_text(Path(given[1:])) if given.startswith("@") else given


def read_text(path: Path) -> str:
    """A text file without its last line end. Raises UsageError when it is too long or not UTF-8."""
    try:
        text = read_small(path.expanduser(), _SYSTEM_LIMIT, UsageError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text (byte {error.start})", where=path) from error
    return text.removesuffix("\n")


def _path(argument: str, where: str) -> Path:
    if not argument:
        raise UsageError("no file", where=where, expected=f"{where} FILE")
    return Path(argument).expanduser()
