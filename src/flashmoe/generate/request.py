"""What is asked of an engine that serves several sequences, and what it tells about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import FlashMoeError
from flashmoe.generate.sampling import SamplingOptions

Reason = Literal["stop", "length", "cancelled"]


class TokenMask(Protocol):
    """A constraint on the tokens of one sequence. It has a state and serves one request."""

    def active(self) -> bool:
        """Whether `apply` would forbid anything now (a grammar may begin later)."""

    def apply(self, logits: NDArray[np.float32]) -> None:
        """logits [vocab_size]: -inf, in place, where a token is not allowed."""

    def accept(self, token: int) -> None:
        """The sequence goes on with this token."""

    def finished(self) -> bool:
        """Nothing but the end is allowed: the answer ends with "stop"."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt and how to go on from it.

    stop_ids: tokens that end the answer. mask: what constrains it. top_logprobs: None for no log
    probabilities, else how many of the likeliest tokens come with each (0: the chosen one only).
    prompt_logprobs: the same for the tokens of the prompt, told by `PromptScored`; such a prompt is
    run as a whole, whatever of it is kept from before. answer: False ends with the prompt
    ("length", no token generated). priority: lower goes first.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    mask: TokenMask | None = field(default=None, compare=False)
    stop_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    answer: bool = True
    priority: int = 0


@dataclass(frozen=True)
class Likely:
    """A token that could have come, and its log probability (natural)."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token of an answer or a prompt.

    text: what it adds to the text without control tokens; "" while a character or a stop string is
    undecided. raw: the same with control tokens as their text. What was held back comes with a
    later token; nothing of a stop string comes at all. logprob: natural, under the plain softmax of
    the model's output, before penalties and masks; None where not asked. top: the likeliest first.
    """

    id: int
    text: str
    raw: str
    logprob: float | None = None
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What one request cost. Times in seconds of wall clock.

    cached_tokens: of the prompt, that were not run again. completion_tokens: generated, the stop
    token among them. prefill_seconds: from the start of the work to the first token;
    decode_seconds: from there to the last. expert_hits, expert_misses, bytes_read: of the passes
    that this request took part in, each pass split evenly among the tokens that it ran. lossy: what
    makes the answer not the model's own, empty if nothing does.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    expert_hits: int = 0
    expert_misses: int = 0
    bytes_read: int = 0
    lossy: str = ""


@dataclass(frozen=True)
class Queued:
    """It waits; so many are before it (0: the next)."""

    place: int


@dataclass(frozen=True)
class Prefill:
    """Its prompt is being run: tokens done of total, `cached` of them kept from before."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class PromptScored:
    """Every token of the prompt; the first has no log probability. Only where it was asked for."""

    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Generated:
    """The next token of the answer."""

    token: Token


@dataclass(frozen=True)
class Finished:
    """The answer is over. stop_string: the one that ended it, with reason "stop"."""

    reason: Reason
    stop_string: str | None
    usage: Usage


@dataclass(frozen=True)
class Failed:
    """It ended with an error; others go on."""

    error: FlashMoeError


Event = Queued | Prefill | PromptScored | Generated | Finished | Failed
"""In this order: Queued*, Prefill*, PromptScored?, Generated*, then Finished or Failed once."""

OnEvent = Callable[[Event], None]
