"""The model that a server serves, and how tasks become questions to its engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flashmoe.errors import RequestError, UsageError
from flashmoe.generate.request import GenerationRequest, TokenMask
from flashmoe.parsers.base import Content, ReplyEvent, ReplyFormat
from flashmoe.server.answers import Question, Submit
from flashmoe.server.task import Asked, ChatTask, Form
from flashmoe.server.worker import SlotView, WorkerFigures
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.prompting import Prompt, chat_prompt
from flashmoe.text.tokenizer import Tokenizer


class WorkerLike(Protocol):
    """What of server.worker.Worker is used here."""

    submit: Submit

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
    grammars: Any
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
        prompt = self.prompt(task)
        return [
            Question(
                self._request(prompt.ids, task.asked, index, self._mask(task, prompt)),
                self.format.parser(prompt.opens_reasoning, list(task.tools.functions)),
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
        return None

    def _form_mask(self, form: Form | None) -> TokenMask | None:
        return None


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
