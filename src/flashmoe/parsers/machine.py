"""The part that all parsers share: tokens and text to atoms, atoms to events.

An atom is one character, or a whole marker (always longer than a character). Parsers are state
machines on atoms, so how the reply was cut into tokens and pieces cannot matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from flashmoe.parsers.base import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Reasoning,
    ReplyEvent,
)
from flashmoe.parsers.json_text import JsonObject, dumped
from flashmoe.text.tokenizer import Tokenizer

State = Callable[[str], None]


class Markers:
    """The markers of a format in one vocabulary: those that are tokens, and those that are text.

    A marker that is a control token counts only as that token: the same letters are text.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Iterable[str]) -> None:
        found = {marker: tokenizer.token_id(marker) for marker in markers}
        control = tokenizer.markup_ids
        self.ids = {id: marker for marker, id in found.items() if id is not None and id in control}
        self._tokens = {marker: id for id, marker in self.ids.items()}

    def id(self, marker: str) -> int | None:
        """The marker's token id, or None when it is text."""
        return self._tokens.get(marker)

    def as_text(self, *markers: str) -> tuple[str, ...]:
        """Those of `markers` that are to be looked for in text."""
        return tuple(marker for marker in markers if marker not in self._tokens)

    def lark(self, marker: str) -> str:
        """The marker in a grammar."""
        id = self._tokens.get(marker)
        return f"<[{id}]>" if id is not None else dumped(marker)


class Machine:
    """A parser as a state machine. Subclasses set `state` and say what to `watch` for in text."""

    def __init__(self, markers: Markers, state: State, watch: tuple[str, ...]) -> None:
        self.markers = markers
        self.state = state
        self._watch = markers.as_text(*watch)
        self._late: list[str] = []  # marker tokens whose text has not come yet
        self._text = ""
        self._partial = ""  # beginning of a marker in text
        self._events: list[ReplyEvent] = []

    def push(self, token_id: int, text: str) -> list[ReplyEvent]:
        """Takes the next token; see ReplyParser."""
        self._text += text
        if token_id in self.markers.ids:
            self._late.append(self.markers.ids[token_id])
        while self._late and self._late[0] in self._text:
            marker = self._late.pop(0)
            before, _, self._text = self._text.partition(marker)
            self._characters(before)
            self._marker(marker)
        if not self._late:
            self._characters(self._text)
            self._text = ""
        return self._taken()

    def finish(self) -> list[ReplyEvent]:
        """The reply is over; see ReplyParser."""
        self._characters(self._text)
        self._text = ""
        self._release()
        for marker in self._late:
            self._marker(marker)
        self._late = []
        self.end()
        return self._taken()

    def end(self) -> None:
        """What a subclass does at the end of a reply."""

    def go(self, state: State, *watch: str) -> None:
        """Enters a state, in which `watch` are the markers looked for in text."""
        self.state, self._watch = state, self.markers.as_text(*watch)

    def emit(self, event: ReplyEvent) -> None:
        """Adds an event, joined to the one before where they are of a kind."""
        last = self._events[-1] if self._events else None
        if isinstance(event, Reasoning | Content) and type(event) is type(last):
            self._events[-1] = replace(event, text=last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            joined = CallArguments(event.index, last.fragment + event.fragment)
            self._events[-1] = joined
        else:
            self._events.append(event)

    def _taken(self) -> list[ReplyEvent]:
        events, self._events = self._events, []
        return events

    def _marker(self, marker: str) -> None:
        self._release()
        self.state(marker)

    def _characters(self, text: str) -> None:
        for char in text:
            self._partial += char
            self._settle()

    def _settle(self) -> None:
        while self._partial:
            if self._partial in self._watch:
                marker, self._partial = self._partial, ""
                self.state(marker)
            elif any(marker.startswith(self._partial) for marker in self._watch):
                return
            else:
                char, self._partial = self._partial[0], self._partial[1:]
                self.state(char)

    def _release(self) -> None:
        """Gives out what only looked like the beginning of a marker."""
        while self._partial:
            char, self._partial = self._partial[0], self._partial[1:]
            self.state(char)


class CallMachine(Machine):
    """A reply of reasoning, content and calls: reasoning and content are done here.

    opener: the marker that begins calls; `call` (the subclass's) is entered there, and leaves by
    `text()`. Blank space between the parts is dropped, inside content it is kept.
    """

    def __init__(
        self, markers: Markers, opens_reasoning: bool, think: tuple[str, str], opener: str | None
    ) -> None:
        self._think_start, self._think_end = think
        self._opener = opener
        self._blank = ""
        self._fresh = False  # right after a part: leading blanks are not content
        self._calls = 0
        super().__init__(markers, self._content, ())
        if opens_reasoning:
            self._reason()
        else:
            self.text(fresh=False)

    def text(self, *, fresh: bool = True) -> None:
        """Back to content."""
        self._fresh = fresh
        openers = (self._opener,) if self._opener else ()
        self.go(self._content, self._think_start, *openers)

    def without_calls(self) -> None:
        """What would begin a call is text. Before the first token only."""
        self._opener = None
        if self.state == self._content:
            self.text(fresh=False)

    def call(self) -> None:
        """A call begins. A subclass enters its first state."""

    def start_call(self, name: str, id: str | None = None) -> int:
        """Tells of a new call and returns its index."""
        self.emit(CallStart(self._calls, name, id))
        self._calls += 1
        return self._calls - 1

    def whole_call(self, name: str, arguments: str, id: str | None = None) -> None:
        """Tells of a call that is known whole."""
        index = self.start_call(name, id)
        self.emit(CallArguments(index, arguments))
        self.emit(CallEnd(index))

    def spill(self, text: str) -> None:
        """A malformed call: its text is content."""
        self._blank = ""
        if text:
            self.emit(Content(text))
        self.text(fresh=False)

    def end(self) -> None:
        """Blank space at the end of content was content."""
        if self.state == self._content and self._blank and not self._fresh:
            self.emit(Content(self._blank))
        self._blank = ""

    def _reason(self) -> None:
        self._fresh = True
        self.go(self._reasoning, self._think_end)

    def _reasoning(self, atom: str) -> None:
        if atom == self._think_end:
            self._blank = ""
            self.text()
        else:
            self._spoken(atom, Reasoning)

    def _content(self, atom: str) -> None:
        if atom == self._think_start:
            self._blank = ""
            self._reason()
        elif atom == self._opener:
            self._blank = ""
            self.call()
        else:
            self._spoken(atom, Content)

    def _spoken(self, atom: str, kind: type[Reasoning] | type[Content]) -> None:
        if atom.isspace():
            self._blank += atom
            return
        blank = "" if self._fresh else self._blank
        self._blank, self._fresh = "", False
        self.emit(kind(blank + atom))


class JsonCallMachine(CallMachine):
    """Calls whose arguments stand in the reply as JSON, passed on as they come."""

    def arguments(self, index: int, after: State, *watch: str) -> None:
        """Enters an argument object, of which nothing has come yet, "{" included.

        after: the state once it is over, watching for `watch`. A marker token outside strings ends
        it early; inside a string it is text.
        """
        self._index, self._json = index, JsonObject()
        self._after, self._after_watch = after, watch
        self.go(self._argument)

    def end(self) -> None:
        """A call that breaks off is over nevertheless."""
        if self.state == self._argument:
            self.emit(CallEnd(self._index))
        super().end()

    def _argument(self, atom: str) -> None:
        if len(atom) > 1 and not self._json.in_string:
            self._leave()
            self.state(atom)
            return
        self.emit(CallArguments(self._index, atom))
        if self._json.push(atom):
            self._leave()

    def _leave(self) -> None:
        self.emit(CallEnd(self._index))
        self.go(self._after, *self._after_watch)
