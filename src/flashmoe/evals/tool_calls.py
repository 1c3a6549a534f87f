"""Tool calls: does the model answer with a valid call, and with exactly the expected one?

Cases are JSON lines: {"messages", "tools", "expected": {"name", "arguments"}}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.errors import UsageError
from flashmoe.evals.json_schema import allowed
from flashmoe.parsers.registry import reply_format
from flashmoe.parsers.schema import schemas
from flashmoe.text.prompting import chat_prompt

if TYPE_CHECKING:
    from flashmoe.api import Model
    from flashmoe.generate.grammar import Mode

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_MAX_TOKENS = 128


@dataclass
class ToolCallScore:
    """valid_json: replies whose first call parses; right_tool: calls of the expected tool; schema:
    calls of an offered tool whose arguments its JSON schema allows; exact: calls equal to the
    expected ones, by case in exact_cases."""

    cases: int = 0
    valid_json: int = 0
    right_tool: int = 0
    schema: int = 0
    exact: int = 0
    exact_cases: list[bool] = field(default_factory=list, repr=False)
    output_ids: list[list[int]] = field(default_factory=list, repr=False)


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The cases of a JSON-lines file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        cases = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read tool-call cases: {error}", where=path) from error
    for number, case in enumerate(cases, 1):
        if not isinstance(case, dict) or not {"messages", "tools", "expected"} <= case.keys():
            raise UsageError(
                "not a tool-call case",
                where=f"{path}, case {number}",
                expected='{"messages", "tools", "expected"}',
            )
    return cases


def score_tool_calls(
    model: Model,
    cases: Sequence[dict[str, Any]],
    on_case: Callable[[int, int], None] | None = None,
    *,
    held_to: Mode | None = None,
) -> ToolCallScore:
    """Answer every case greedily and compare the call.

    held_to: answers follow a grammar (extra `serve`): "auto" from the opening marker of a call on,
    "required" from the start. None: the model writes as it likes.
    """
    score = ToolCallScore(cases=len(cases))
    for number, case in enumerate(cases, 1):
        text, ids = _free(model, case) if held_to is None else _held(model, case, held_to)
        score.output_ids.append(ids)
        call = first_call(text)
        score.valid_json += call is not None
        score.right_tool += call is not None and call["name"] == case["expected"]["name"]
        score.schema += call is not None and follows_schema(call, case["tools"])
        score.exact_cases.append(call == case["expected"])
        score.exact += score.exact_cases[-1]
        if on_case is not None:
            on_case(number, len(cases))
    return score


def follows_schema(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call names one of the tools and its arguments are what that schema allows."""
    schema = schemas(tools).get(str(call["name"]))
    return schema is not None and allowed(call.get("arguments"), schema)


def _free(model: Model, case: dict[str, Any]) -> tuple[str, list[int]]:
    """(text, ids) of an answer without a grammar."""
    pieces = list(
        model.generate(
            messages=case["messages"],
            tools=case["tools"],
            max_tokens=_MAX_TOKENS,
            temperature=0.0,
        )
    )
    return "".join(p.text for p in pieces), [p.token_id for p in pieces]


def _held(model: Model, case: dict[str, Any], mode: Mode) -> tuple[str, list[int]]:
    """(text, ids) of an answer held to the call syntax and the tools' schemas."""
    from flashmoe.generate.grammar import Grammars, Thinking, ToolChoice

    tokenizer, session = model.tokenizer, model.session()
    prompt = chat_prompt(model.chat_template, tokenizer, case["messages"], tools=case["tools"])
    logits = session.feed(prompt.ids)
    reply = reply_format(tokenizer, model.chat_template)
    grammars = Grammars(tokenizer, logits.size, stop_ids=model.stop_ids, reply=reply)
    thinking = Thinking(opened=prompt.opens_reasoning, allowed=False)
    mask = grammars.tools(case["tools"], ToolChoice(mode), parallel=False, thinking=thinking)
    ids: list[int] = []
    while len(ids) < _MAX_TOKENS and not mask.finished():
        scores = logits.copy()
        if mask.active():
            mask.apply(scores)
        token = int(scores.argmax())
        if token in model.stop_ids:
            break
        mask.accept(token)
        ids.append(token)
        logits = session.step(token)
    return tokenizer.decode(ids), ids


def first_call(reply: str) -> dict[str, Any] | None:
    """The first tool call of a reply, or None if there is none or it is not valid JSON."""
    found = _CALL.search(reply)
    if found is None:
        return None
    try:
        call = json.loads(found.group(1))
    except json.JSONDecodeError:
        return None
    return call if isinstance(call, dict) and "name" in call else None
