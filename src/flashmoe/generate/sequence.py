"""One request at work: what was run of it, what was answered, what it cost."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import FlashMoeError
from flashmoe.generate.answering import Answering
from flashmoe.generate.costs import Costs
from flashmoe.generate.request import (
    Failed,
    Finished,
    Generated,
    GenerationRequest,
    OnEvent,
    Prefill,
    PromptScored,
    Reason,
    Token,
    Usage,
)
from flashmoe.layers.state import SequenceState
from flashmoe.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]


class RunningSequence:
    """A request and its state on the engine. Its events go to on_event.

    cached: tokens of the prompt that the state holds from before.
    """

    def __init__(
        self,
        request: GenerationRequest,
        state: SequenceState,
        tokenizer: Tokenizer,
        on_event: OnEvent,
        queue_seconds: float = 0.0,
        lossy: str = "",
    ) -> None:
        self.request, self.state = request, state
        self.cached, self._lossy = state.position, lossy
        self.cancelled = self.over = self.failed = False
        self.ids = list(request.prompt_ids)  # prompt, then answer
        self.costs = Costs()
        self._tokenizer, self._emit, self._queue_seconds = tokenizer, on_event, queue_seconds
        self._answering = Answering(request, tokenizer)
        self._scored: list[Token] = []
        self._start, self._first = perf_counter(), 0.0
        self.progress(0)

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Tokens of the prompt that were not run yet; 0 while it answers."""
        return max(0, self.prompt_tokens - self.state.position)

    @property
    def first_token_seconds(self) -> float:
        """From the start of the work to the first token; 0 before it."""
        return self._first

    def progress(self, ahead: int) -> None:
        """Tell how far the prompt is; ahead: tokens done of the pass that is under way."""
        done = min(self.state.position + ahead, self.prompt_tokens)
        self._emit(Prefill(done, self.prompt_tokens, self.cached))

    def score(self, logits: Logits, position: int) -> None:
        """Note the token at position + 1 of the prompt; logits: of the one at `position`."""
        if not self._scored:
            self._scored.append(self._plain_token(self.ids[0]))
        id = self.ids[position + 1]
        wanted = self.request.prompt_logprobs
        assert wanted is not None
        logprob, top = self._answering.likely(logits, id, wanted)
        text = self._tokenizer.decode([id], skip_special=False)
        self._scored.append(Token(id, text, text, logprob, top))

    def prompt_done(self) -> None:
        """The whole prompt was run: tell its scores, and end if nothing is to be answered."""
        if self.request.prompt_logprobs is not None:
            scored = self._scored or [self._plain_token(self.ids[0])]
            self._emit(PromptScored(tuple(scored)))
        if not self.request.answer:
            self.finish("length")

    def take(self, logits: Logits) -> None:
        """Choose the next token from logits [vocab_size] and tell it.

        Raises NumericError if they are not finite, UsageError if the mask allows no token.
        """
        full = self.state.position >= self.state.context_length
        chosen = self._answering.choose(logits, self.ids, full)
        if not self.answered:
            self._first = perf_counter() - self._start
        self.ids.append(chosen.token.id)
        self._emit(Generated(chosen.token))
        if chosen.end is not None:
            self.finish(chosen.end, chosen.stop_string)

    def finish(self, reason: Reason, stop_string: str | None = None) -> None:
        """The last event; nothing follows."""
        self.over = True
        self._emit(Finished(reason, stop_string, self._usage()))

    def fail(self, error: FlashMoeError) -> None:
        """The last event; nothing follows."""
        self.over = self.failed = True
        self._emit(Failed(error))

    def _plain_token(self, id: int) -> Token:
        text = self._tokenizer.decode([id], skip_special=False)
        return Token(id, text, text)

    def _usage(self) -> Usage:
        seconds = perf_counter() - self._start
        prefill = self._first or seconds
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            completion_tokens=self.answered,
            queue_seconds=self._queue_seconds,
            prefill_seconds=prefill,
            decode_seconds=seconds - prefill,
            expert_hits=round(self.costs.hits),
            expert_misses=round(self.costs.misses),
            bytes_read=round(self.costs.bytes_read),
            lossy=self._lossy,
        )
