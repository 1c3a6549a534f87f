"""Requests run to their end on a scheduler, and what they were told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flashmoe.api import Model
from flashmoe.demo import demo_model_path
from flashmoe.generate.engine import Prefixes
from flashmoe.generate.request import (
    Event,
    Failed,
    Finished,
    Generated,
    GenerationRequest,
    Prefill,
    PromptScored,
    Token,
)
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.generate.scheduler import Scheduler
from flashmoe.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(demo_model_path())


@dataclass
class Told:
    """The events of one request."""

    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[Token]:
        return [e.token for e in self.events if isinstance(e, Generated)]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def bits(self) -> list[tuple[Any, ...]]:
        """Tokens with their log probabilities, to compare for equality."""
        return [(t.id, t.logprob, t.top) for t in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def failed(self) -> Failed:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last

    @property
    def scored(self) -> tuple[Token, ...]:
        (event,) = [e for e in self.events if isinstance(e, PromptScored)]
        return event.tokens

    @property
    def cached(self) -> int:
        first = next(e for e in self.events if isinstance(e, Prefill))
        return first.cached


def ask(prompt: Sequence[int], tokens: int = 8, **fields: Any) -> GenerationRequest:
    """A request with log probabilities; fields of GenerationRequest or SamplingOptions."""
    own = GenerationRequest.__dataclass_fields__.keys() & fields.keys()
    sampling = {k: v for k, v in fields.items() if k not in own}
    options = SamplingOptions(max_tokens=tokens, **sampling)
    given = {"top_logprobs": 3} | {k: fields[k] for k in own}
    return GenerationRequest(tuple(prompt), options, **given)


def scheduler_of(
    model: Model, parallel: int = 1, prefixes: Prefixes | None = None, gap: float = 1.0
) -> Scheduler:
    """On a model that may have no tokenizer."""
    engine, costs = model._loaded.engine, model._loaded.costs
    return Scheduler(engine, TOKENIZER, costs, parallel, prefixes, gap)


def run_all(
    scheduler: Scheduler, requests: Sequence[GenerationRequest], apart: int = 0
) -> list[Told]:
    """All to their end, each as soon as there is room; `apart` steps between two arrivals."""
    told = [Told() for _ in requests]
    waiting = list(zip(requests, told, strict=True))
    steps = 0
    while waiting or scheduler.running:
        while waiting and not scheduler.full and (not apart or steps % apart == 0):
            request, events = waiting.pop(0)
            scheduler.check(request)
            scheduler.start(request, events.events.append)
            if apart:
                break
        scheduler.step()
        steps += 1
    scheduler.close()
    return told
