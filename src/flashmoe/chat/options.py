"""What /set changes: sampling options and thinking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flashmoe.errors import UsageError
from flashmoe.generate.sampling import SamplingOptions

# The context ends an answer earlier.
MAX_TOKENS = 4096

_THINKING = {"on": True, "off": False, "auto": None}


def _whole(text: str) -> int:
    return int(text)


def _seed(text: str) -> int | None:
    return None if text == "none" else int(text)


def _stop(text: str) -> tuple[str, ...]:
    return () if text == "none" else (text,)


_SAMPLING: dict[str, tuple[Callable[[str], Any], str]] = {
    "max_tokens": (_whole, "most tokens in an answer"),
    "temperature": (float, "how much chance; 0: none (greedy)"),
    "top_p": (float, "fewest tokens that make up this probability; 1: off"),
    "top_k": (_whole, "only the K likeliest tokens; 0: off"),
    "min_p": (float, "least share of the likeliest one's probability; 0: off"),
    "repeat_penalty": (float, "against tokens seen before; 1: off"),
    "seed": (_seed, "makes chance repeatable; none: a fresh one each time"),
    "stop": (_stop, "text that ends an answer; none: no such"),
}
HELP = {name: text for name, (_, text) in _SAMPLING.items()} | {
    "thinking": "on, off, or auto: as the model's template has it"
}


@dataclass(frozen=True)
class Options:
    """How answers are drawn. thinking: None leaves it to the template."""

    sampling: SamplingOptions = field(
        default_factory=lambda: SamplingOptions(max_tokens=MAX_TOKENS)
    )
    thinking: bool | None = None

    def changed(self, name: str, text: str) -> Options:
        """With one value from its text. Raises UsageError for an unknown name or a bad value."""
        if name == "thinking":
            if text not in _THINKING:
                raise UsageError("wrong value", where=name, expected="on, off, auto", got=text)
            return replace(self, thinking=_THINKING[text])
        if name not in _SAMPLING:
            raise UsageError(
                "unknown setting", where="/set", expected=", ".join(HELP), got=repr(name)
            )
        try:
            value = _SAMPLING[name][0](text)
        except ValueError as error:
            raise UsageError("not a number", where=name, got=repr(text)) from error
        return replace(self, sampling=replace(self.sampling, **{name: value}))

    def shown(self) -> dict[str, str]:
        """Every value as text that `changed` takes."""
        values = asdict(self.sampling)
        stop = values["stop"][0] if values["stop"] else "none"
        seed = "none" if values["seed"] is None else str(values["seed"])
        thinking = next(word for word, value in _THINKING.items() if value is self.thinking)
        plain = {
            name: f"{values[name]:g}" if isinstance(values[name], float) else str(values[name])
            for name in _SAMPLING
        }
        return plain | {"stop": stop, "seed": seed, "thinking": thinking}
