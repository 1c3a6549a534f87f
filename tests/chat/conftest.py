"""A chat with the demo model's texts and made-up arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from flashmoe.chat.options import Options
from flashmoe.chat.session import Chat
from flashmoe.chat.tools import Answer, Tool, ToolBox
from flashmoe.chat.view import Figures
from flashmoe.parsers.base import Content, ReplyEvent
from flashmoe.stats import Stats
from tests.support.scripted_model import END, ScriptedModel, peaked, sample_stats


class ScriptedSession:
    """Answers with `replies` in turn; can go back as keys and values can, or not at all."""

    def __init__(self, replies: Sequence[Sequence[int]], forgets: bool = False) -> None:
        self.replies = [[*reply, END] for reply in replies]
        self.forgets = forgets
        self.fed: list[list[int]] = []
        self.position = 0
        self._now: list[int] = []

    def feed(self, ids: Sequence[int], on_progress: Callable[[int], None] | None = None) -> object:
        if on_progress is not None:
            on_progress(len(ids) // 2)
        self.fed.append(list(ids))
        self.position += len(ids)
        self._now = self.replies.pop(0)
        return peaked(self._now.pop(0))

    def step(self, id: int) -> object:
        self.position += 1
        return peaked(self._now.pop(0))

    def rewind(self, position: int) -> int:
        back = position < self.position
        self.position = 0 if back and self.forgets else position
        return self.position

    def restore(self, ids: Sequence[int], prefixes: object) -> int:
        raise AssertionError("nothing is kept here")

    def keep(self, ids: Sequence[int], prefixes: object) -> None:
        raise AssertionError("nothing is kept here")


class TalkingModel(ScriptedModel):
    """A scripted model with one session."""

    def __init__(self, *replies: str, forgets: bool = False) -> None:
        super().__init__("", sample_stats())
        self.scripted = ScriptedSession([self.tokenizer.encode(r) for r in replies], forgets)

    def session(self) -> ScriptedSession:
        return self.scripted

    def restart_stats(self) -> None:
        self.stats: Stats = sample_stats()


@dataclass
class Recorder:
    """A view that keeps what it is told, and answers questions with `decisions`."""

    decisions: list[tuple[Answer, str | None]] = field(default_factory=list)
    said: str = ""
    remarks: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def reading(self, done: int, total: int) -> None:
        pass

    def add(self, events: list[ReplyEvent], figures: Figures) -> None:
        self.said += "".join(e.text for e in events if isinstance(e, Content))

    def end_answer(self, figures: Figures, remark: str) -> None:
        self.remarks.append(remark)

    def called(self, name: str, text: str) -> None:
        self.results.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def table(self, rows: Mapping[str, str]) -> None:
        self.notes.append("\n".join(f"{name} {text}" for name, text in rows.items()))

    def error(self, text: str) -> None:
        self.notes.append(text)

    def allow(self, name: str, text: str) -> tuple[Answer, str]:
        self.asked.append((name, text))
        answer, edited = self.decisions.pop(0)
        return answer, text if edited is None else edited


Make = Callable[..., Chat]


@pytest.fixture
def view() -> Recorder:
    return Recorder()


@pytest.fixture
def make(view: Recorder) -> Make:
    """(replies..., tools=, forgets=, options=, interrupted=, rounds=) -> a chat; .model is its."""

    def build(
        *replies: str,
        tools: Sequence[Tool] = (),
        forgets: bool = False,
        options: Options | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        rounds: int = 10,
    ) -> Chat:
        model = TalkingModel(*replies, forgets=forgets)
        chat = Chat(model, view, ToolBox(tools), options or Options(), interrupted, rounds)
        vars(chat)["scripted"] = model.scripted
        return chat

    return build
