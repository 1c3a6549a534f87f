"""POST /v1/completions: a text (or token ids) as it stands goes on; scores of a prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError
from flashmoe.generate.request import Prefill, PromptScored, Token, Usage
from flashmoe.parsers.base import Content
from flashmoe.server.answers import Answers, End, Part, Question, Update
from flashmoe.server.errors import openai_error
from flashmoe.server.ids import new_id
from flashmoe.server.openai_chat import prompt_progress
from flashmoe.server.openai_shapes import finite, usage_object
from flashmoe.server.reply import Reply, timings, total_usage, vendor
from flashmoe.server.requests.openai import CompletionBody
from flashmoe.server.sampling import asked_of, form_of
from flashmoe.server.served import Served
from flashmoe.server.service import Service, body_of, service_of, whole
from flashmoe.server.settings import Limits
from flashmoe.server.task import Asked, check_count
from flashmoe.server.wire import DONE, event

# What a client that names no limit gets, as OpenAI's API has it.
_DEFAULT_TOKENS = 16


async def completions(request: Request) -> Response:
    """Answers prompts, whole or as server-sent events."""
    service, body = service_of(request), await body_of(request, CompletionBody)
    served, asked = service.model(), _asked(body, service)
    key = service.run_key(request, body)
    prompts = _prompts(body, service.settings.limits)
    work = _Work(served, body, asked)
    answers = await service.ask(lambda: work.questions(prompts, key))
    if not body.stream:
        return await whole(request, answers, len(work.echoed), work.whole)
    return service.stream(answers, work.chunks(answers), "text/event-stream")


def _asked(body: CompletionBody, service: Service) -> Asked:
    if body.suffix:
        raise RequestError("suffix: this model cannot fill in the middle", param="suffix")
    if (body.best_of or 1) > (body.n or 1):
        raise RequestError("best_of: answers are not ranked; ask for n of them", param="best_of")
    return asked_of(
        body,
        service.settings.limits,
        service.model().defaults,
        max_tokens=_DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
        top_logprobs=body.logprobs,
        form=form_of(body),
    )


def _prompts(body: CompletionBody, limits: Limits) -> list[str | list[int]]:
    """The prompts of a body: each text or token ids."""
    given: Any = body.prompt
    if isinstance(given, str) or (given and all(isinstance(id, int) for id in given)):
        given = [given]
    check_count("prompt", len(given) * (body.n or 1), limits.prompts)
    if not given or any(isinstance(prompt, int) for prompt in given):
        told = "prompt: expected a text, token ids, or a list of these"
        raise RequestError(told, param="prompt", code="invalid_type")
    return list(given)


@dataclass
class _Work:
    """One request: its questions, and their answers in OpenAI's shape."""

    served: Served
    body: CompletionBody
    asked: Asked
    echoed: list[str] = field(default_factory=list)
    id: str = field(default_factory=lambda: new_id("cmpl-"))
    created: int = field(default_factory=lambda: int(time()))

    def questions(self, prompts: Sequence[str | list[int]], key: str) -> list[Question]:
        """For every prompt, one per choice."""
        found: list[Question] = []
        scores = self.body.logprobs if self.body.echo else None
        for place, prompt in enumerate(prompts):
            ids = self.served.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            found += self.served.completion(ids, self.asked, f"{key}/{place}", scores)
            self.echoed += [self._echo(prompt)] * self.asked.choices
        return found

    def _echo(self, prompt: str | list[int]) -> str:
        if not self.body.echo:
            return ""
        if isinstance(prompt, str):
            return prompt
        return self.served.tokenizer.decode(prompt, skip_special=False)

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.name,
        }

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """A text_completion."""
        choices = [self._choice(i, reply) for i, reply in enumerate(replies)]
        return self._head() | {"choices": choices} | self._figures([r.end for r in replies])

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        tokens = [*reply.prompt_tokens, *reply.content_tokens]
        scored = self.body.logprobs is not None
        return {
            "index": index,
            "text": self.echoed[index] + reply.content,
            "logprobs": completion_logprobs(tokens, 0) if scored else None,
            "finish_reason": reply.end.reason,
        }

    def _figures(self, ends: Sequence[End]) -> dict[str, Any]:
        """Choices share their prompt; prompts add up."""
        step = self.asked.choices
        groups = [ends[i : i + step] for i in range(0, len(ends), step)]
        sums = [total_usage([end.usage for end in group]) for group in groups]
        prompts, cached = sum(u.prompt_tokens for u in sums), sum(u.cached_tokens for u in sums)
        usage = Usage(**(vars(total_usage(sums)) | _counts(prompts, cached)))
        return {
            "usage": usage_object(usage, 0),
            "timings": timings(usage),
            "flashmoe": vendor(usage),
        }

    async def chunks(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        ends: dict[int, End] = {}
        offsets = [0] * len(self.echoed)
        try:
            for index, text in enumerate(self.echoed):
                if text and self.body.logprobs is None:
                    yield self._chunk(index, text)
            async for index, update in answers.updates():
                if chunk := self._update(index, update, offsets):
                    yield chunk
                if isinstance(update, End):
                    ends[index] = update
            if self.body.stream_options and self.body.stream_options.include_usage:
                figures = self._figures([ends[i] for i in sorted(ends)])
                yield event(self._head() | {"choices": []} | figures)
        except RequestError as error:
            yield event(openai_error(error))
        yield DONE

    def _update(self, index: int, update: Update, offsets: list[int]) -> bytes | None:
        match update:
            case Part(Content(text), tokens):
                return self._text(index, text, tokens, offsets)
            case PromptScored(tokens) if self.body.echo:
                return self._text(index, self.echoed[index], tokens, offsets)
            case Prefill() if self.body.return_progress:
                return self._chunk(index, "", prompt_progress=prompt_progress(update))
            case End(reason):
                return self._chunk(index, "", finish=reason)
        return None

    def _text(self, index: int, text: str, tokens: Sequence[Token], offsets: list[int]) -> bytes:
        scored = self.body.logprobs is not None
        logprobs = completion_logprobs(tokens, offsets[index]) if scored else None
        offsets[index] += len(text)
        return self._chunk(index, text, logprobs)

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event(self._head() | {"choices": [choice]} | more)


def _counts(prompts: int, cached: int) -> dict[str, int]:
    return {"prompt_tokens": prompts, "cached_tokens": cached}


def completion_logprobs(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    """logprobs of a completion's choice; null for the first token of a prompt. offset: of the first
    token's text."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.raw)
    return {
        "tokens": [token.raw for token in tokens],
        "token_logprobs": [None if t.logprob is None else finite(t.logprob) for t in tokens],
        "top_logprobs": [_likely(token) for token in tokens],
        "text_offset": offsets,
    }


def _likely(token: Token) -> dict[str, float] | None:
    """Text to log probability, the token itself included; of equal texts the likelier."""
    if token.logprob is None:
        return None
    others = {likely.text: finite(likely.logprob) for likely in reversed(token.top)}
    return {token.raw: finite(token.logprob)} | others
