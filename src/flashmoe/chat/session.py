"""A chat: messages, answers, rounds of tool calls. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from flashmoe.chat.options import Options
from flashmoe.chat.reply import Reply, Writer
from flashmoe.chat.sequence import Continued, Feeds, Logits
from flashmoe.chat.tools import ToolBox
from flashmoe.chat.view import Figures, View
from flashmoe.errors import FlashMoeError, UsageError
from flashmoe.generate.engine import Prefixes
from flashmoe.generate.grammar import Grammars, Thinking
from flashmoe.generate.masks import Masks
from flashmoe.parsers.base import ReplyEvent
from flashmoe.parsers.registry import reply_format
from flashmoe.stats import Stats
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.prompting import Prompt, chat_prompt
from flashmoe.text.tokenizer import Tokenizer

MAX_ROUNDS = 10

Message = dict[str, Any]


class Talks(Protocol):
    """A loaded model (flashmoe.Model)."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> ChatTemplate: ...

    @property
    def stop_ids(self) -> frozenset[int]: ...

    @property
    def context_length(self) -> int: ...

    @property
    def stats(self) -> Stats: ...

    def session(self) -> Feeds: ...

    def restart_stats(self) -> None: ...


class Interrupt(Exception):
    """The user ended the answer while its prompt was read."""


@dataclass
class _Clock:
    """When an answer began, and its first token came."""

    start: float = field(default_factory=perf_counter)
    first: float = 0.0


class Chat:
    """One conversation.

    interrupted: asked between layers and tokens; True ends the answer. rounds: answers with tool
    calls that may follow one message. prefixes: keeps states of prompts, for models whose own
    cannot go back.
    """

    def __init__(
        self,
        model: Talks,
        view: View,
        tools: ToolBox,
        options: Options,
        interrupted: Callable[[], bool] = lambda: False,
        rounds: int = MAX_ROUNDS,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.options, self.messages = options, list[Message]()
        self.figures: Figures | None = None
        self._model, self._view, self._tools, self._rounds = model, view, tools, rounds
        self._interrupted = interrupted
        self._sequence = Continued(model.session(), model.tokenizer, prefixes)
        self._writer = Writer(
            self._sequence, model.tokenizer, model.stop_ids, model.context_length, interrupted
        )
        self._format = reply_format(model.tokenizer, model.chat_template)
        self._grammars: Grammars | None = None
        self._reused = self._prompt_tokens = 0

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    def set_system(self, text: str | None) -> None:
        """Another system prompt, or none; the rest stays."""
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = [*([{"role": "system", "content": text}] if text else []), *rest]

    def clear(self) -> None:
        """Forget all but the system prompt."""
        self.messages = self.messages[: self.system is not None]

    def ask(self, text: str) -> None:
        """Say something; the answer goes to the view. After an error the chat is as before."""
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            self._answer()
        except (FlashMoeError, Interrupt, KeyboardInterrupt):
            self.messages = before
            raise

    def retry(self) -> None:
        """The last message again. Raises UsageError when there is none."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise UsageError("there is no message to answer again", where="/retry")
        before = list(self.messages)
        text = before[asked[-1]]["content"]
        self.messages = before[: asked[-1]]
        try:
            self.ask(text)
        except (FlashMoeError, Interrupt, KeyboardInterrupt):
            self.messages = before
            raise

    def _answer(self) -> None:
        for _ in range(self._rounds):
            reply = self._one_reply()
            self.messages.append(reply.as_message())
            if not reply.whole_calls:
                return
            for call in reply.whole_calls:
                outcome = self._tools.carry_out(call, self._view)
                self._view.called(call.name, outcome.text)
                self.messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": call.id,
                        "name": call.name,
                        "content": outcome.text,
                    }
                )
        self._view.note(f"stopped after {self._rounds} rounds of tool calls (--rounds)")

    def _one_reply(self) -> Reply:
        reply, clock = Reply(), _Clock()
        prompt = self._prompt()
        self._fits(prompt)
        self._model.restart_stats()
        logits, self._reused = self._sequence.read(prompt.ids, self._progress)
        self._prompt_tokens = len(prompt.ids)
        clock.first = perf_counter()
        try:
            for events in self._written(reply, prompt, logits):
                self._view.add(events, self._figures(reply, clock))
        finally:
            self.figures = self._figures(reply, clock)
            self._view.end_answer(self.figures, _REMARKS[reply.end])
        return reply

    def _written(self, reply: Reply, prompt: Prompt, logits: Logits) -> Iterator[list[ReplyEvent]]:
        """The events of each token, taken into the reply."""
        tools = self._tools.schemas
        parser = self._format.parser(prompt.opens_reasoning, tools, calls=bool(tools))
        mask = self._mask(prompt, len(logits))
        calls = sum(len(message.get("tool_calls", ())) for message in self.messages)
        for events in self._writer.write(logits, self.options.sampling, parser, mask, reply):
            for event in events:
                reply.add(event, calls)
            yield events

    def _prompt(self) -> Prompt:
        return chat_prompt(
            self._model.chat_template,
            self._model.tokenizer,
            self.messages,
            tools=self._tools.schemas or None,
            enable_thinking=self.options.thinking,
        )

    def _fits(self, prompt: Prompt) -> None:
        if len(prompt.ids) >= self._model.context_length:
            raise UsageError(
                "the chat is too long for the context",
                where="chat",
                expected=f"fewer than {self._model.context_length} tokens",
                got=len(prompt.ids),
                hint="Start over with /clear, or restart with a larger --ctx.",
            )

    def _progress(self, done: int, total: int) -> None:
        if self._interrupted() and done < total:
            raise Interrupt
        self._view.reading(done, total)

    def _mask(self, prompt: Prompt, vocab_size: int) -> Masks | None:
        """What holds calls to their syntax; None where no tool is offered."""
        if not self._tools.schemas:
            return None
        if self._grammars is None:
            self._grammars = Grammars(
                self._model.tokenizer,
                vocab_size,
                stop_ids=self._model.stop_ids,
                reply=self._format,
            )
        thinking = Thinking(prompt.opens_reasoning, allowed=not prompt.closed_reasoning)
        return self._grammars.tools(self._tools.schemas, thinking=thinking)

    def _figures(self, reply: Reply, clock: _Clock) -> Figures:
        stats, now = self._model.stats, perf_counter()
        passed = max(now - clock.start, 1e-9)
        return Figures(
            tokens=reply.tokens,
            tokens_per_second=stats.decode_tokens_per_second,
            hit_rate=stats.hit_rate,
            disk=stats.bytes_read / passed,
            memory=stats.peak_rss,
            prompt_tokens=self._prompt_tokens,
            reused=self._reused,
            first_token_seconds=clock.first - clock.start,
        )


_REMARKS = {"stop": "", "length": "cut at max_tokens or the context", "interrupted": "stopped"}
