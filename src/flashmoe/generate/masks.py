"""Constraints of one answer, token by token (generate.request.TokenMask)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import UsageError
from flashmoe.parsers.base import CallGrammar
from flashmoe.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Logits = NDArray[np.float32]
# Enough text before a call to see its header.
_REMEMBERED = 512


class Masks(Protocol):
    """A constraint with a state; the same as generate.request.TokenMask."""

    def active(self) -> bool:
        """Whether `apply` would forbid anything now."""

    def apply(self, logits: Logits) -> None:
        """logits float32 [vocab_size]: -inf, in place, where a token is not allowed."""

    def accept(self, token: int) -> None:
        """The answer goes on with this token."""

    def finished(self) -> bool:
        """Nothing but the end is allowed."""


@dataclass(frozen=True)
class MaskParts:
    """What all masks of a model share."""

    vocab_size: int
    stop_ids: frozenset[int]
    tokenizer: Tokenizer
    guide: LLTokenizer


class Matched:
    """An answer that follows a grammar from its first token to its end."""

    def __init__(self, parts: MaskParts, matcher: LLMatcher) -> None:
        self._parts, self._matcher = parts, matcher
        self._bits = np.zeros((parts.vocab_size + 31) // 32, dtype=np.int32)

    def active(self) -> bool:
        """Always: the grammar holds from the start."""
        return True

    def apply(self, logits: Logits) -> None:
        """See Masks."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._require_sound()
        allowed = np.unpackbits(self._bits.view(np.uint8), count=logits.size, bitorder="little")
        np.copyto(logits, np.float32(-np.inf), where=allowed == 0)

    def accept(self, token: int) -> None:
        """See Masks. A stop token is the engine's affair."""
        if token not in self._parts.stop_ids or not self._matcher.is_accepting():
            self._matcher.consume_token(token)
            self._require_sound()

    def finished(self) -> bool:
        """See Masks."""
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """Whether the answer so far is a whole one."""
        return bool(self._matcher.is_accepting())

    def try_text(self, text: str) -> bool:
        """Text that has come already, as the beginning; False where the grammar has no such."""
        ids = self._parts.guide.tokenize_str(text)
        return bool(self._matcher.try_consume_tokens(ids) == len(ids))

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            what = f"the grammar cannot be followed ({self._matcher.get_error()})"
            raise UsageError(what, where="grammar", hint="Use a simpler grammar.")


class Calls:
    """Free content with calls held to their syntax.

    bodies: compiled, by name. forbidden: no call at all. several: more than one call.
    first: compiled grammar of a call that the answer must begin with, or None.
    """

    def __init__(
        self,
        parts: MaskParts,
        calls: CallGrammar,
        bodies: Mapping[str, LLMatcher],
        forbidden: bool,
        several: bool,
        first: LLMatcher | None,
    ) -> None:
        self._parts, self._calls, self._bodies = parts, calls, bodies
        self._forbidden, self._several = forbidden, several
        self._body = Matched(parts, first.deep_copy()) if first is not None else None
        self._done = False
        self._before = ""
        self._pieces = parts.tokenizer.detokenizer(skip_special=False)

    def active(self) -> bool:
        """Within a call, or where calls are forbidden."""
        return self._body is not None or (self._forbidden and isinstance(self._calls.trigger, int))

    def apply(self, logits: Logits) -> None:
        """See Masks."""
        if self._body is not None:
            self._body.apply(logits)
        elif self._forbidden and isinstance(self._calls.trigger, int):
            logits[self._calls.trigger] = -np.inf

    def accept(self, token: int) -> None:
        """See Masks."""
        if self._body is not None:
            self._body.accept(token)
            if self._body.complete:
                self._body, self._done, self._before = None, True, ""
        elif not self._forbidden:
            self._look(token)

    def finished(self) -> bool:
        """After the one call that was allowed."""
        return self._done and not self._several

    def _look(self, token: int) -> None:
        """Begins a call when its marker has come."""
        text = self._pieces.push([token])
        trigger, before = self._calls.trigger, self._before
        self._before = (before + text)[-_REMEMBERED:]
        if token == trigger:
            self._begin(before, "")
        elif isinstance(trigger, str) and trigger in self._before:
            before, _, after = self._before.partition(trigger)
            self._begin(before, after)

    def _begin(self, before: str, after: str) -> None:
        name = self._calls.pick(before)
        if name is None or name not in self._bodies:
            return
        body = Matched(self._parts, self._bodies[name].deep_copy())
        if body.try_text(after):
            self._body, self._before = body, ""


class Gate:
    """Reasoning first, free but for its length; then what `inner` demands.

    think: ids that open and close reasoning; no opening id: the model may not open it.
    skips: ids of line breaks, one of which may come between reasoning and content.
    """

    def __init__(
        self,
        parts: MaskParts,
        inner: Masks | None,
        think: tuple[int | None, int],
        opened: bool,
        budget: int | None,
        skips: frozenset[int],
    ) -> None:
        self._parts, self._inner = parts, inner
        self._open_id, self._close_id = think
        self._inside, self._begun = opened, False
        self._budget, self._used = budget, 0
        self._skips = skips if opened else frozenset()
        self._all_skips = skips

    @classmethod
    def nothing(cls, parts: MaskParts) -> Gate:
        """A mask that never forbids anything."""
        return cls(parts, None, (None, -1), False, None, frozenset())

    def active(self) -> bool:
        """See Masks."""
        if self._inside:
            return self._spent()
        return self._inner is not None and self._inner.active()

    def apply(self, logits: Logits) -> None:
        """See Masks."""
        if self._inside:
            if self._spent():
                self._only(logits, self._close_id)
        elif self._inner is not None:
            kept = {id: logits[id] for id in self._also()}
            self._inner.apply(logits)
            for id, value in kept.items():
                logits[id] = value

    def accept(self, token: int) -> None:
        """See Masks."""
        if self._inside:
            self._used += 1
            self._inside = token != self._close_id
        elif not self._begun and token == self._open_id:
            self._inside, self._open_id, self._skips = True, None, self._all_skips
        elif not self._begun and token in self._skips:
            self._skips = frozenset()
        else:
            self._begun = True
            if self._inner is not None:
                self._inner.accept(token)

    def finished(self) -> bool:
        """See Masks."""
        return not self._inside and self._inner is not None and self._inner.finished()

    def _spent(self) -> bool:
        return self._budget is not None and self._used >= self._budget

    def _also(self) -> set[int]:
        """What may come before the answer proper begins."""
        if self._begun:
            return set()
        opening = set() if self._open_id is None else {self._open_id}
        return opening | self._skips

    @staticmethod
    def _only(logits: Logits, id: int) -> None:
        value = logits[id]
        logits.fill(-np.inf)
        logits[id] = value
