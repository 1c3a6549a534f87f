"""Which reply format a model has: seen from its template, and from the tokens it knows.

The markers that a template writes around calls in the history are those that the model writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from flashmoe.parsers import (
    call_rules,
    deepseek,
    dsml,
    gemma,
    glm,
    harmony,
    hermes,
    kimi,
    minimax,
    qwen_xml,
)
from flashmoe.parsers.base import CallGrammar, ReplyFormat, ReplyParser, Tools
from flashmoe.parsers.gemma_rules import gemma_rules
from flashmoe.parsers.json_text import dumped
from flashmoe.parsers.machine import CallMachine, Markers
from flashmoe.parsers.plain import THINK, PlainParser
from flashmoe.parsers.schema import function_of
from flashmoe.parsers.xml_calls import Tags, XmlParser
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.tokenizer import Tokenizer

Build = Callable[[Markers, bool, Tools], CallMachine]
Rules = Callable[[Markers, Tools, bool], str]


class _Maker(Protocol):
    def __call__(self, tokenizer: Tokenizer, template: str) -> ReplyFormat: ...


@dataclass(frozen=True)
class TaggedFormat:
    """A format with one marker that opens calls, and a pair of markers around reasoning.

    open: the opening marker, None for a format without calls. think: the pair.
    """

    name: str
    markers: Markers
    open: str | None
    build: Build = field(repr=False)
    rules: Rules = field(repr=False)
    think: tuple[str, str] = THINK

    @property
    def think_start(self) -> int | None:
        """See ReplyFormat."""
        return self.markers.id(self.think[0])

    @property
    def think_end(self) -> int | None:
        """See ReplyFormat."""
        return self.markers.id(self.think[1])

    def parser(
        self, opens_reasoning: bool = False, tools: Tools = (), *, calls: bool = True
    ) -> ReplyParser:
        """See ReplyFormat."""
        parser = self.build(self.markers, opens_reasoning, tools)
        if not calls:
            parser.without_calls()
        return parser

    def calls(self, tools: Tools, *, several: bool = True) -> CallGrammar | None:
        """See ReplyFormat."""
        if self.open is None:
            return None
        id = self.markers.id(self.open)
        body = self.rules(self.markers, tools, several)
        trigger = self.open if id is None else id
        opening = {"": self.markers.lark(self.open)}
        return CallGrammar(trigger, opening, {"": body}, lambda before: "")

    def answer(self, rules: str) -> str:
        """See ReplyFormat: content stands alone here."""
        return rules


@dataclass(frozen=True)
class HarmonyFormat:
    """gpt-oss: every part of a reply is a message with a header."""

    markers: Markers
    name: str = "harmony"
    think_start: None = None
    think_end: None = None

    def parser(
        self, opens_reasoning: bool = False, tools: Tools = (), *, calls: bool = True
    ) -> ReplyParser:
        """See ReplyFormat; a message to a function is a call in any case."""
        return harmony.HarmonyParser(self.markers)

    def calls(self, tools: Tools, *, several: bool = True) -> CallGrammar | None:
        """See ReplyFormat: the header says of which function the arguments follow."""
        lark = self.markers.lark
        names = [str(function_of(tool).get("name", "")) for tool in tools]
        opening = {
            name: f"{self._thought()} {lark(harmony.CHANNEL)} "
            + f"{dumped(f'commentary to=functions.{name} ')} {lark(harmony.CONSTRAIN)} "
            + f'"json" {lark(harmony.MESSAGE)}'
            for name in names
        }
        bodies = {name: call_rules.harmony_rules(self.markers, name, tools) for name in names}
        trigger = self.markers.id(harmony.MESSAGE) or harmony.MESSAGE
        return CallGrammar(trigger, opening, bodies, _recipient)

    def answer(self, rules: str) -> str:
        """See ReplyFormat: analysis if the model wants, then the final channel."""
        lark = self.markers.lark
        final = f'{lark(harmony.CHANNEL)} "final" {lark(harmony.MESSAGE)}'
        return f"start: {self._thought()} {final} answer\n" + _renamed(rules)

    def _thought(self) -> str:
        lark = self.markers.lark
        opening = f'{lark(harmony.CHANNEL)} "analysis" {lark(harmony.MESSAGE)}'
        closing = f'{lark("<|end|>")} {lark(harmony.START)} "assistant"'
        return f"({opening} /(.|\\n)*/ {closing})?"


def reply_format(tokenizer: Tokenizer, template: ChatTemplate) -> ReplyFormat:
    """The reply format of a model, "plain" where none is recognised."""
    source = "\n".join(template.sources.values())
    for make, signs in _SIGNS:
        if all(sign in source for sign in signs):
            return make(tokenizer, source)
    return _plain(tokenizer, source)


def _recipient(before: str) -> str | None:
    return harmony.recipient(before.rpartition("<|end|>")[2])


def _renamed(rules: str) -> str:
    """A grammar whose rule `start` is called `answer`."""
    return re.sub(r"(?m)^start(?=\s*:)", "answer", rules)


def _plain(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    markers = Markers(tokenizer, THINK)
    return TaggedFormat("plain", markers, None, lambda m, o, t: PlainParser(m, o), lambda *_: "")


def _hermes(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    return TaggedFormat(
        "hermes",
        Markers(tokenizer, hermes.MARKERS),
        hermes.OPEN,
        lambda m, o, t: hermes.HermesParser(m, o),
        lambda m, t, several: call_rules.hermes_rules(m, t),
    )


def _xml(name: str, tags: Tags) -> _Maker:
    def make(tokenizer: Tokenizer, template: str) -> ReplyFormat:
        return TaggedFormat(
            name,
            Markers(tokenizer, tags.markers),
            tags.open,
            lambda m, o, t: XmlParser(m, o, tags, t),
            lambda m, t, several: call_rules.xml_rules(m, t, tags, several),
        )

    return make


def _dsml(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    tags = dsml.tags(dsml.V32 if dsml.V32 in template else dsml.V4)
    return _xml("dsml", tags)(tokenizer, template)


def _glm(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    newlines = "</arg_key>\\n" in template or "</arg_key>\n" in template
    return TaggedFormat(
        "glm",
        Markers(tokenizer, glm.MARKERS),
        glm.OPEN,
        lambda m, o, t: glm.GlmParser(m, o, t),
        lambda m, t, several: call_rules.glm_rules(m, t, newlines),
    )


def _deepseek(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    fenced = ('"function" SPLIT "NAME\\n```json\\n"', '"\\n```"', '"\\n"')
    call = fenced if "```json" in template else ('"NAME" SPLIT', "", "")
    return TaggedFormat(
        "deepseek",
        Markers(tokenizer, deepseek.SECTION.markers),
        deepseek.SECTION.open,
        lambda m, o, t: deepseek.DeepSeekParser(m, o),
        lambda m, t, several: call_rules.section_rules(m, t, deepseek.SECTION, call, several),
    )


def _kimi(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    call = ('"functions.NAME:" /[0-9]{1,4}/ SPLIT', "", "")
    return TaggedFormat(
        "kimi",
        Markers(tokenizer, kimi.SECTION.markers),
        kimi.SECTION.open,
        lambda m, o, t: kimi.KimiParser(m, o),
        lambda m, t, several: call_rules.section_rules(m, t, kimi.SECTION, call, several),
    )


def _gemma(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    return TaggedFormat(
        "gemma",
        Markers(tokenizer, gemma.MARKERS),
        gemma.OPEN,
        lambda m, o, t: gemma.GemmaParser(m, o),
        lambda m, t, several: gemma_rules(m, t),
        gemma.THINK,
    )


def _harmony(tokenizer: Tokenizer, template: str) -> ReplyFormat:
    return HarmonyFormat(Markers(tokenizer, harmony.MARKERS))


# The more special come first: several formats write <tool_call>.
_SIGNS: tuple[tuple[_Maker, tuple[str, ...]], ...] = (
    (_harmony, (harmony.CHANNEL, harmony.MESSAGE)),
    (_gemma, (gemma.OPEN,)),
    (_deepseek, (deepseek.SECTION.call,)),
    (_dsml, (dsml.MARK,)),
    (_kimi, (kimi.SECTION.call,)),
    (_xml("minimax", minimax.TAGS), (minimax.TAGS.open,)),
    (_glm, (glm.KEY,)),
    (_xml("qwen_xml", qwen_xml.TAGS), (qwen_xml.TAGS.open, qwen_xml.TAGS.function)),
    (_hermes, (hermes.OPEN,)),
)
