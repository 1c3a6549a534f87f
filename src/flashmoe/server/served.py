"""The model that a server serves, and how tasks become questions to its engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flashmoe.errors import RequestError
from flashmoe.generate.grammar import Grammars, Thinking, ToolChoice
from flashmoe.generate.request import GenerationRequest, OnEvent, TokenMask
from flashmoe.parsers.base import Content, ReplyEvent, ReplyFormat
from flashmoe.server.answers import Question, Ticket
from flashmoe.server.task import Asked, ChatTask, Form
from flashmoe.server.worker import SlotView, WorkerFigures
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.prompting import Prompt, chat_prompt
from flashmoe.text.tokenizer import Tokenizer

# A prompt as it stands goes on with the answer proper.
_NO_THINKING = Thinking(allowed=False)


class WorkerLike(Protocol):
    """What of server.worker.Worker is used here."""

    def submit(
        self, request: GenerationRequest, on_event: OnEvent, key: str | None = None
    ) -> Ticket:
        """Queue a request."""

    def slots(self) -> list[SlotView]:
        """All that run or wait."""

    def figures(self) -> WorkerFigures:
        """Counters."""

    def close(self) -> None:
        """Cancel everything."""


@dataclass(frozen=True)
class Served:
    """A loaded model with its text side.

    name: its id in every API. defaults: sampling options where a request gives none.
    facts: what /v1/models and /api/show tell of it. created: when it was loaded, seconds of Unix
    time.
    """

    name: str
    worker: WorkerLike
    tokenizer: Tokenizer
    template: ChatTemplate
    stop_ids: frozenset[int]
    context_length: int
    vocab_size: int
    format: ReplyFormat
    grammars: Grammars
    defaults: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    created: int = 0

    def prompt(self, task: ChatTask) -> Prompt:
        """The prompt of a chat. Raises UsageError when the template refuses it."""
        tools = None if task.tools.choice == "none" else list(task.tools.functions) or None
        return chat_prompt(
            self.template,
            self.tokenizer,
            task.messages,
            tools=tools,
            enable_thinking=task.thinking,
            continue_final=task.continue_final,
            variables=task.variables,
        )

    def chat(self, task: ChatTask, key: str | None) -> list[Question]:
        """One question per choice. Raises UsageError, RequestError (the prompt is too long)."""
        prompt, functions = self.prompt(task), list(task.tools.functions)
        calls = bool(functions) and task.tools.choice != "none"
        return [
            Question(
                self._request(prompt.ids, task.asked, index, self._mask(task, prompt)),
                self.format.parser(prompt.opens_reasoning, functions, calls=calls),
                key and f"{key}/{index}",
            )
            for index in range(task.asked.choices)
        ]

    def completion(
        self, ids: Sequence[int], asked: Asked, key: str | None, prompt_logprobs: int | None
    ) -> list[Question]:
        """One question per choice, for a prompt as it stands."""
        return [
            Question(
                self._request(ids, asked, index, self._form_mask(asked.form), prompt_logprobs),
                _Plain(),
                key and f"{key}/{index}",
            )
            for index in range(asked.choices)
        ]

    def _request(
        self,
        ids: Sequence[int],
        asked: Asked,
        index: int,
        mask: TokenMask | None,
        prompt_logprobs: int | None = None,
    ) -> GenerationRequest:
        self._check_ids(ids)
        return GenerationRequest(
            prompt_ids=tuple(ids),
            sampling=asked.options(self.context_length - len(ids) + 1, index),
            mask=mask,
            stop_ids=self.stop_ids,
            top_logprobs=asked.top_logprobs,
            prompt_logprobs=prompt_logprobs,
            answer=asked.max_tokens != 0,
            priority=asked.priority,
        )

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not ids:
            raise RequestError("the prompt is empty", param="prompt")
        if max(ids) >= self.vocab_size:
            told = f"prompt: token ids are below {self.vocab_size}, got {max(ids)}"
            raise RequestError(told, param="prompt")
        if len(ids) > self.context_length:
            raise _too_long(len(ids), self.context_length)

    def _mask(self, task: ChatTask, prompt: Prompt) -> TokenMask | None:
        """What holds the answer to its form. Raises UsageError for an unusable grammar."""
        tools, form = task.tools, task.asked.form
        thinking = Thinking(
            opened=prompt.opens_reasoning,
            allowed=not prompt.closed_reasoning,
            budget=task.thinking_budget,
        )
        if form is not None and tools.functions and tools.choice != "none":
            told = "tools and a response format cannot both hold; set tool_choice to none"
            raise RequestError(told, param="response_format")
        if form is not None:
            return self._form_mask(form, thinking)
        if not tools.functions:
            return self.grammars.free(thinking=thinking)
        choice = ToolChoice(tools.choice, tools.named)
        return self.grammars.tools(
            tools.functions, choice, parallel=tools.parallel, thinking=thinking
        )

    def _form_mask(self, form: Form | None, thinking: Thinking = _NO_THINKING) -> TokenMask | None:
        match form:
            case None:
                return None
            case Form("json_object"):
                return self.grammars.json_object(thinking=thinking)
            case Form("json_schema", schema):
                return self.grammars.json_schema(schema, thinking=thinking)
            case Form("regex", text):
                return self.grammars.regex(text, thinking=thinking)
            case Form("gbnf", text):
                return self.grammars.gbnf(text, thinking=thinking)
            case Form(_, text):
                return self.grammars.lark(text, thinking=thinking)


class _Plain:
    """The parser of an answer without markup."""

    def push(self, token_id: int, text: str) -> list[ReplyEvent]:
        return [Content(text)] if text else []

    def finish(self) -> list[ReplyEvent]:
        return []


def _too_long(tokens: int, most: int) -> RequestError:
    return RequestError(
        f"the prompt has {tokens} tokens, the context {most}: shorten it, or start the server with "
        "a larger --ctx",
        code="context_length_exceeded",
        param="messages",
        extra={"n_prompt_tokens": tokens, "n_ctx": most},
    )
