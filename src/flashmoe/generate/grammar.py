"""Answers held to a grammar: masks over the logits, made by llguidance (extra `serve`).

A grammar holds for the content of a reply. Reasoning before it is free, up to the token that ends
it; calls are held to the model's own syntax and the tools' schemas from their opening marker on.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from flashmoe.errors import UsageError
from flashmoe.generate.masks import Calls, Gate, MaskParts, Masks, Matched
from flashmoe.parsers.base import CallGrammar, ReplyFormat, Tools
from flashmoe.parsers.call_rules import json_rule
from flashmoe.parsers.schema import function_of
from flashmoe.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# A client's grammar is work before the first token: these keep it below about a second.
MAX_GRAMMAR_BYTES = 256 * 1024
_MAX_SYMBOLS = 100_000
_LEXER_FUEL = 2_000_000
_CACHED = 64

Mode = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True)
class ToolChoice:
    """Which calls an answer may have; "named" means one call of `name`."""

    mode: Mode = "auto"
    name: str | None = None


@dataclass(frozen=True)
class Thinking:
    """How an answer may begin.

    opened: the prompt ended inside the reasoning part (Prompt.opens_reasoning).
    allowed: the model may open one itself; False after thinking was switched off.
    budget: most tokens of reasoning; then it is made to end. None: no limit.
    """

    opened: bool = False
    allowed: bool = True
    budget: int | None = None


class Grammars:
    """Makes the masks of a model's answers. Grammars are compiled once and kept (the last 64).

    Args:
        tokenizer, vocab_size: of the model; the logits have vocab_size entries.
        stop_ids: tokens that may end an answer.
        reply: how the model writes reasoning and calls.

    Every method gives a fresh mask for one answer, and raises UsageError with llguidance's words
    for a grammar or schema that cannot be used. May be called from any thread.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        *,
        stop_ids: frozenset[int],
        reply: ReplyFormat,
    ) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._stop_ids, self._reply = stop_ids, reply
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()
        self._guide: LLTokenizer | None = None

    def json_object(self, *, thinking: Thinking = Thinking()) -> Masks:
        """Content that is one JSON object."""
        return self.json_schema({"type": "object"}, thinking=thinking)

    def json_schema(
        self, schema: Mapping[str, Any] | bool, *, thinking: Thinking = Thinking()
    ) -> Masks:
        """Content that is JSON text of `schema`."""
        return self._content(f"start: {json_rule(schema)}\n", thinking, "json_schema")

    def regex(self, pattern: str, *, thinking: Thinking = Thinking()) -> Masks:
        """Content that matches a regular expression as a whole (Rust syntax, no look-around)."""
        return self._content(f"start: ANSWER\nANSWER: {_lark_regex(pattern)}\n", thinking, "regex")

    def lark(self, grammar: str, *, thinking: Thinking = Thinking()) -> Masks:
        """Content of a grammar in llguidance's Lark, with a rule `start`."""
        return self._content(grammar, thinking, "grammar")

    def gbnf(self, grammar: str, *, thinking: Thinking = Thinking()) -> Masks:
        """Content of a grammar in llama.cpp's GBNF, with a rule `root`."""
        return self._content(_from_gbnf(grammar), thinking, "grammar")

    def tools(
        self,
        tools: Tools,
        choice: ToolChoice = ToolChoice(),
        *,
        parallel: bool = True,
        thinking: Thinking = Thinking(),
    ) -> Masks:
        """Calls in the model's own syntax with arguments of the tools' schemas.

        auto: content is free, each call is held to its syntax. none: no call. required: a call
        comes first (after reasoning). named: exactly one call, of that tool. parallel: more than
        one call. Raises UsageError too when the format has no calls or the named tool is missing.
        """
        offered = _chosen(tools, choice)
        several = parallel and choice.mode != "named"
        calls = self._reply.calls(offered, several=several)
        if calls is None:
            raise UsageError("the model's chat template has no tool calls", where="tools")
        bodies = {name: self._compile(body, "tools") for name, body in calls.bodies.items()}
        must = choice.mode in ("required", "named")
        first = self._first(calls) if must else None
        inner = Calls(self._parts(), calls, bodies, choice.mode == "none", several, first)
        return self._gated(inner, thinking)

    def free(self, *, thinking: Thinking) -> Masks | None:
        """No grammar, only a limit to reasoning; None where there is nothing to hold."""
        if thinking.budget is None or self._reply.think_end is None:
            return None
        return self._gated(None, thinking)

    def _first(self, calls: CallGrammar) -> LLMatcher:
        """The grammar of an answer that begins with a call."""
        starts, rules = [], []
        for number, (name, opening) in enumerate(calls.opening.items()):
            starts.append(f"{opening} body{number}")
            rules.append(_own_names(calls.bodies[name], number))
        return self._compile(f"start: {' | '.join(starts)}\n" + "".join(rules), "tools")

    def _content(self, rules: str, thinking: Thinking, where: str) -> Masks:
        whole = self._reply.answer(rules)
        matcher = self._compile(whole, where).deep_copy()
        return self._gated(Matched(self._parts(), matcher), thinking)

    def _gated(self, inner: Masks | None, thinking: Thinking) -> Masks:
        reply = self._reply
        if reply.think_end is None or not (thinking.opened or thinking.allowed):
            return inner if inner is not None else Gate.nothing(self._parts())
        opens = reply.think_start if thinking.allowed else None
        skips = {
            ids[0] for text in ("\n", "\n\n") if len(ids := self._tokenizer.encode_plain(text)) == 1
        }
        return Gate(
            self._parts(),
            inner,
            (opens, reply.think_end),
            thinking.opened,
            thinking.budget,
            frozenset(skips),
        )

    def _parts(self) -> MaskParts:
        return MaskParts(self._vocab_size, self._stop_ids, self._tokenizer, self._tokens())

    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if self._guide is None:
            definition = self._tokenizer.path.read_text(encoding="utf-8")
            ends = sorted(self._stop_ids) or [0]
            self._guide = LLTokenizer(definition, n_vocab=self._vocab_size, eos_token=ends)
        return self._guide

    def _compile(self, rules: str, where: str) -> LLMatcher:
        """The compiled grammar; copy it before use."""
        with self._lock:
            if rules not in self._compiled:
                self._compiled[rules] = _compiled(self._tokens(), rules, where)
            self._compiled.move_to_end(rules)
            while len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
            return self._compiled[rules]


def _compiled(tokens: LLTokenizer, rules: str, where: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    if len(rules.encode()) > MAX_GRAMMAR_BYTES:
        limit = f"at most {MAX_GRAMMAR_BYTES} bytes"
        raise UsageError("the grammar is too long", where=where, expected=limit, got=len(rules))
    limits = LLParserLimits(
        initial_lexer_fuel=_LEXER_FUEL, max_grammar_size=_MAX_SYMBOLS, verbose_errors=False
    )
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(rules), log_level=0, limits=limits)
    if matcher.is_error():
        raise UsageError(f"the grammar cannot be used ({matcher.get_error()})", where=where)
    return matcher


def _from_gbnf(grammar: str) -> str:
    from llguidance import gbnf_to_lark

    try:
        return str(gbnf_to_lark.gbnf_to_lark(grammar))
    except Exception as error:  # The converter raises nothing narrower.
        raise UsageError(f"not a GBNF grammar ({error})", where="grammar") from error


def _lark_regex(pattern: str) -> str:
    """A regular expression between Lark's slashes; what is escaped already stays so."""
    named = {"/": "\\/", "\n": "\\n", "\r": "\\r"}
    escaped = re.sub(
        r"\\.|[/\n\r]", lambda found: named.get(found[0], found[0]), pattern, flags=re.S
    )
    return f"/{escaped}/"


def _own_names(rules: str, number: int) -> str:
    """The rules of a body under names that no other body has."""
    rules = re.sub(r"^start:", f"body{number}:", rules)
    return rules if number == 0 else re.sub(r"\bargs\b", f"args_{number}", rules)


def _chosen(tools: Tools, choice: ToolChoice) -> Tools:
    if choice.mode != "named":
        return tools
    found = [tool for tool in tools if function_of(tool).get("name") == choice.name]
    if not found:
        raise UsageError("there is no such tool", where="tool_choice", got=choice.name)
    return found
