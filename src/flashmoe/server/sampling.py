"""Sampling fields of a body to options of a draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.errors import RequestError
from flashmoe.server.requests.base import Constrained, Record, Sampling, Thinking
from flashmoe.server.settings import Limits
from flashmoe.server.task import Asked, Form, check_count, stop_strings

# Fields that go to SamplingOptions under their own name.
_PLAIN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")


def asked_of(
    body: Sampling,
    limits: Limits,
    defaults: Mapping[str, Any],
    *,
    max_tokens: int | None,
    top_logprobs: int | None = None,
    form: Form | None = None,
) -> Asked:
    """What a body of OpenAI's kind asks for. Raises RequestError naming a field out of range."""
    check_count("n", body.n or 1, limits.choices)
    check_count("top_logprobs", top_logprobs or 0, limits.top_logprobs)
    options = plain_options(body, defaults)
    penalty = body.repeat_penalty or body.repetition_penalty
    if penalty is not None:
        options["repeat_penalty"] = penalty
    options["stop"] = stop_strings(body.stop, limits)
    options["logit_bias"] = _bias(body.logit_bias)
    options["seed"] = body.seed
    return Asked(options, max_tokens, top_logprobs, body.n or 1, body.priority or 0, form)


def plain_options(body: object, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in _PLAIN that are given, above the defaults; "off" in the way we write it."""
    given = {name: getattr(body, name, None) for name in _PLAIN}
    options = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    if options.get("top_k", 0) < 0:
        options["top_k"] = 0
    if options.get("top_p") == 0:  # the likeliest token only
        options["top_k"], options["top_p"] = 1, 1.0
    return options


def _bias(given: Mapping[str, float] | None) -> dict[int, float]:
    if not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in given or {}):
        told = "logit_bias: the keys are token ids"
        raise RequestError(told, param="logit_bias", code="invalid_type")
    return {int(key): value for key, value in (given or {}).items()}


def form_of(body: Constrained) -> Form | None:
    """The form that the answer must have. Raises RequestError for one unknown, or for two."""
    found = [form for form in (_response_format(body.response_format), *_grammars(body)) if form]
    if len(found) > 1:
        raise RequestError("only one of response_format and a grammar can hold", param="grammar")
    return found[0] if found else None


def _grammars(body: Constrained) -> list[Form | None]:
    return [
        None if body.json_schema is None else Form("json_schema", body.json_schema),
        None if not body.grammar else Form("gbnf", body.grammar),
        None if not body.regex else Form("regex", body.regex),
        None if not body.lark else Form("lark", body.lark),
    ]


def _response_format(given: Record | None) -> Form | None:
    kind = "text" if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object" and given.get("schema") is None:
        return Form("json_object")
    if kind in ("json_object", "json_schema"):
        return Form("json_schema", schema_of(given, "response_format"))
    if kind == "grammar" and isinstance(given.get("grammar"), str):
        return Form("lark", given["grammar"])
    told = 'response_format.type: expected "text", "json_object" or "json_schema"'
    raise RequestError(told, param="response_format.type", code="invalid_value")


def schema_of(given: Record, param: str) -> Record:
    """The schema in {"json_schema": {"schema": …}} or {"schema": …}. Raises RequestError."""
    nested = given.get("json_schema")
    schema = (nested if isinstance(nested, dict) else given).get("schema")
    if not isinstance(schema, dict):
        raise RequestError(f"{param}: the schema is missing or no object", param=param)
    return schema


def thinking_of(body: Thinking) -> bool | None:
    """Whether the model shall think first; None leaves it to the template."""
    if body.enable_thinking is not None:
        return body.enable_thinking
    wanted = (body.chat_template_kwargs or {}).get("enable_thinking")
    if isinstance(wanted, bool):
        return wanted
    if body.reasoning_effort is not None:
        return body.reasoning_effort != "none"
    return False if body.thinking_budget == 0 else None


def template_variables(body: Thinking) -> dict[str, Any]:
    """More for the template: chat_template_kwargs, and the effort where it is given."""
    variables = dict(body.chat_template_kwargs or {})
    variables.pop("enable_thinking", None)
    if body.reasoning_effort not in (None, "none"):
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    return variables
