"""A chat on a terminal: Markdown as it comes, a footer that lives, colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import monotonic

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from flashmoe.chat.tools import Answer
from flashmoe.chat.view import Figures, footer
from flashmoe.generate.progress import PromptMeter
from flashmoe.parsers.base import CallArguments, CallStart, Content, Reasoning, ReplyEvent
from flashmoe.text.printable import printable, visible

# Seconds between two pictures of the part that still changes.
_INTERVAL = 0.08
_TOOL_LINES = 12

Ask = Callable[[str, str], str | None]


class _Tail:
    """The last lines of something that may be taller than the screen."""

    def __init__(self, inner: RenderableType, below: int) -> None:
        self._inner, self._below = inner, below

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._inner, options.update(height=None), pad=False)
        for line in lines[-max(1, options.size.height - self._below) :]:
            yield from line
            yield Segment.line()


class Screen:
    """Shows a chat with rich.

    What can no longer change is printed for good, block by block; only the block that is being
    written is drawn again, so that an answer may be longer than the screen.

    ask: (question, text to edit or "") -> what the user typed, None to refuse.
    """

    def __init__(self, console: Console, ask: Ask) -> None:
        self._console, self._ask = console, ask
        self._live: Live | None = None
        self._open, self._thinking, self._status = "", False, ""
        self._drawn = 0.0
        self._meter = PromptMeter(self._show_status)
        self._blocks = MarkdownIt()

    def reading(self, done: int, total: int) -> None:
        """See View."""
        if done < total:
            self._meter(done, total)
        else:
            self._stop()

    def add(self, events: list[ReplyEvent], figures: Figures) -> None:
        """See View."""
        for event in events:
            if isinstance(event, Reasoning | Content):
                self._turn(isinstance(event, Reasoning))
                self._open += printable(event.text)
            elif isinstance(event, CallStart):
                self._turn(False)
                self._commit(self._open)
                self._open = f"calls `{visible(event.name)}` "
            elif isinstance(event, CallArguments):
                self._open += visible(event.fragment) if len(self._open) < 4000 else ""
        self._status = footer(figures, self._console.width - 1)
        if monotonic() - self._drawn >= _INTERVAL:
            self._commit_finished()
            self._draw()

    def end_answer(self, figures: Figures, remark: str) -> None:
        """See View."""
        self._commit(self._open)
        self._open, self._thinking = "", False
        self._stop()
        last = f"{remark} | " if remark else ""
        self.note(last + footer(figures, max(1, self._console.width - 1 - len(last))))

    def called(self, name: str, text: str) -> None:
        """See View."""
        lines = printable(text).splitlines() or ["(nothing)"]
        more = len(lines) - _TOOL_LINES
        shown = lines[:_TOOL_LINES] + ([f"... {more} more lines"] if more > 0 else [])
        self._console.print(Text("\n".join(self._ruled(shown)), style="cyan"))

    def note(self, text: str) -> None:
        """See View."""
        self._console.print(Text(printable(text), style="dim"))

    def table(self, rows: Mapping[str, str]) -> None:
        """See View: the right column wraps within itself."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=self._console.width >= 2 * max(map(len, rows)))
        grid.add_column()
        for name, text in rows.items():
            grid.add_row(Text(printable(name)), Text(printable(text)), style="dim")
        self._console.print(grid)

    def error(self, text: str) -> None:
        """See View."""
        self._stop()
        self._console.print(Text(printable(text), style="red"))

    def allow(self, name: str, text: str) -> tuple[Answer, str]:
        """See View."""
        self._console.print(Text(f"{visible(name)} wants to run:", style="yellow"))
        self._console.print(Text(visible(text), style="bold"))
        while True:
            typed = (self._ask("Run it? [y]es [n]o [a]lways [e]dit: ", "") or "n").strip().lower()
            if typed in ("y", "yes"):
                return "yes", text
            if typed in ("a", "always"):
                return "always", text
            if typed in ("n", "no"):
                return "no", text
            if typed in ("e", "edit"):
                changed = self._ask("edit: ", text)
                return ("no", text) if changed is None else ("yes", changed)

    def _ruled(self, lines: list[str]) -> Iterator[str]:
        """The lines, also those that do not fit, behind a rule."""
        width = max(1, self._console.width - 2)
        for line in lines:
            parts = Text(line).wrap(self._console, width, overflow="fold") if line else [Text()]
            yield from (f"│ {part.plain}" for part in parts)

    def _show_status(self, text: str) -> None:
        self._status = f"reading the prompt: {text}"
        self._draw()

    def _turn(self, thinking: bool) -> None:
        """From reasoning to content or back."""
        if thinking != self._thinking:
            self._commit(self._open)
            self._open, self._thinking = "", thinking

    def _commit_finished(self) -> None:
        """Print for good what is before the block that is being written."""
        end = self._open.rfind("\n") + 1 if self._thinking else self._last_block()
        self._commit(self._open[:end])
        self._open = self._open[end:]

    def _last_block(self) -> int:
        """Where the last top-level block of the Markdown begins."""
        tops = [t.map[0] for t in self._blocks.parse(self._open) if t.level == 0 and t.map]
        lines = self._open.splitlines(keepends=True)
        return sum(map(len, lines[: max(tops, default=0)]))

    def _commit(self, text: str) -> None:
        if text.strip():
            self._console.print(self._rendered(text.rstrip("\n")))

    def _rendered(self, text: str) -> RenderableType:
        return Text(text, style="dim italic") if self._thinking else Markdown(text)

    def _draw(self) -> None:
        self._drawn = monotonic()
        line = Text(self._status[: self._console.width - 1], style="dim", no_wrap=True)
        body = [_Tail(self._rendered(self._open), 2)] if self._open.strip() else []
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Group(*body, line), refresh=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
