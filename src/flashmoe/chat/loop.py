"""Messages in, answers out, until the user ends it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from flashmoe.chat.commands import Commands
from flashmoe.chat.session import Chat, Interrupt
from flashmoe.chat.view import View
from flashmoe.errors import FlashMoeError


class Stop:
    """Ctrl-C while an answer is made: the first one ends it after the token or layer under way.

    A second one does not wait; then the next message reads the whole prompt again.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Only within the block Ctrl-C means this."""
        self._asked = False
        before = signal.signal(signal.SIGINT, self._heard)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


def from_keyboard(chat: Chat, view: View, read: Callable[[], str], stop: Stop) -> None:
    """Talk until Ctrl-D or /quit; errors are shown and the chat goes on."""
    commands = Commands(chat, view)
    while True:
        try:
            text = read()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            with stop.listening():
                if not handle(text, chat, commands):
                    return
        except (Interrupt, KeyboardInterrupt):
            view.error("stopped before the answer")
        except FlashMoeError as error:
            view.error(str(error))


def from_lines(chat: Chat, view: View, lines: Iterable[str]) -> None:
    """Every line is a message or a command; a backslash at its end joins the next.

    The first error ends it.
    """
    commands, begun = Commands(chat, view), ""
    for line in lines:
        text = begun + line.removesuffix("\n")
        if text.endswith("\\"):
            begun = text[:-1] + "\n"
            continue
        begun = ""
        if not handle(text, chat, commands):
            return
    handle(begun, chat, commands)


def handle(text: str, chat: Chat, commands: Commands) -> bool:
    """A command or a message -> whether the chat goes on. "//" begins a message with a slash."""
    if not text.strip():
        return True
    if text.startswith("/") and not text.startswith("//"):
        return commands.run(text)
    chat.ask(text[1:] if text.startswith("//") else text)
    return True
