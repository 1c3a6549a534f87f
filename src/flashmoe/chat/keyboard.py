"""What a user types: several lines, a history, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from flashmoe.files import storage_errors


class Keyboard:
    """Reads messages. Enter sends, Alt-Enter and a backslash before Enter begin a new line.

    history: a file; its directory is made. input, output: of prompt_toolkit, for tests.
    Raises StorageError when the history cannot be kept.
    """

    def __init__(
        self,
        history: Path,
        commands: list[str],
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        with storage_errors("cannot keep the history", history):
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
        ends: dict[str, Any] = {"input": input, "output": output}
        self._session = PromptSession[str](
            history=FileHistory(str(history)),
            multiline=True,
            key_bindings=_keys(),
            prompt_continuation="  ",
            completer=WordCompleter(commands, sentence=True),
            complete_while_typing=False,
            **ends,
        )
        self._questions = PromptSession[str](**ends)

    def message(self) -> str:
        """The next message. Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        return self._session.prompt("> ")

    def ask(self, question: str, text: str) -> str | None:
        """An answer, with `text` to edit; None for Ctrl-C and Ctrl-D. Not in the history."""
        try:
            return self._questions.prompt(question, default=text)
        except (EOFError, KeyboardInterrupt):
            return None


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
