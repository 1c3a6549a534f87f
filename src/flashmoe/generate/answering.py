"""The answer to a request as its tokens are chosen: sampling, constraint, text, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flashmoe.generate.loop import Answer
from flashmoe.generate.request import GenerationRequest, Likely, Token
from flashmoe.generate.sampling import Sampler, likeliest, log_total
from flashmoe.text.tokenizer import Tokenizer

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """A token. end: why it is the last, None if it is not; stop_string: the one that ended it."""

    token: Token
    end: Literal["stop", "length"] | None
    stop_string: str | None = None


class Answering:
    """Chooses the tokens of one answer. It runs no model: who does feeds what was chosen."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._sampler = Sampler(request.sampling)
        stop = request.sampling.stop
        self._text = Answer(tokenizer, stop)
        self._raw = Answer(tokenizer, stop, skip_special=False)

    def choose(self, logits: Logits, ids: Sequence[int], full: bool) -> Chosen:
        """The next token.

        logits [vocab_size]. ids: prompt and answer so far. full: nothing more can be fed.
        Raises NumericError if logits are not finite, UsageError if the mask allows no token.
        """
        request = self._request
        mask, answer_start = request.mask, len(request.prompt_ids)
        forbid = mask.apply if mask is not None and mask.active() else None
        id = self._sampler.choose(logits, ids, answer_start, forbid)
        wanted = request.top_logprobs
        logprob, top = (None, ()) if wanted is None else self.likely(logits, id, wanted)
        end = self._end(id, full or len(ids) + 1 - answer_start >= request.sampling.max_tokens)
        shown = [] if id in request.stop_ids else [id]
        text, _ = self._text.add(shown, last=end is not None)
        raw, _ = self._raw.add(shown, last=end is not None)
        stop_string = self._text.matched or self._raw.matched
        token = Token(id, text, raw, logprob, top)
        return Chosen(token, "stop" if stop_string is not None else end, stop_string)

    def break_off(self) -> str:
        """The raw text that was held back, of an answer that goes no further."""
        return self._raw.add([], last=True)[0]

    def likely(self, logits: Logits, id: int, wanted: int) -> tuple[float, tuple[Likely, ...]]:
        """The log probability of a token under logits [vocab_size], and the likeliest ones."""
        total = log_total(logits)
        ids = likeliest(logits, wanted).tolist()
        texts = (self._tokenizer.decode([other], skip_special=False) for other in ids)
        top = (
            Likely(other, text, float(logits[other]) - total)
            for other, text in zip(ids, texts, strict=True)
        )
        return float(logits[id]) - total, tuple(top)

    def _end(self, id: int, full: bool) -> Literal["stop", "length"] | None:
        """Why this token is the last, stop strings aside."""
        if id in self._request.stop_ids:
            return "stop"
        mask = self._request.mask
        if mask is not None:
            mask.accept(id)
            if mask.finished():
                return "stop"
        return "length" if full else None
