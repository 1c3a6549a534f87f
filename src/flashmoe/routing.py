"""Lossy rules of routing: fewer experts per token, or others than the router's best.

All are off by default. With any of them on, every output says so (`RoutingOptions.lossy`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from flashmoe.errors import UsageError


@dataclass(frozen=True)
class RoutingOptions:
    """What may be changed about the router's choice of K experts; the defaults change nothing.

    k: fewer experts for every layer. per_layer: at most so many in each layer of experts, as
    "8/8/6". mass: of the K, by falling weight, only as many as have this share of their weights.
    ratio: none below this share of the first one's weight. margin: an expert in memory may take the
    place of one that is not, if its weight is at least (1 - margin) of that one's; the `sacred`
    first are never replaced. skip: an expert that is not in memory is left out if it has less than
    skip / K of the weights. margin and skip apply to passes of a single token: a prompt reads an
    expert once for many. What they give depends on the size of the cache.
    """

    k: int | None = None
    per_layer: tuple[int, ...] = ()
    mass: float = 1.0
    ratio: float = 0.0
    margin: float = 0.0
    sacred: int = 2
    skip: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("mass", 0.0, 1.0),
            ("ratio", 0.0, 1.0),
            ("margin", 0.0, 0.99),
            ("skip", 0.0, 16.0),
            ("sacred", 0, 1 << 10),
        ):
            _check(name, getattr(self, name), low, high)
        for count in (*self.per_layer, *(() if self.k is None else (self.k,))):
            _check("k", count, 1, 1 << 10)

    @staticmethod
    def parse(text: str) -> RoutingOptions:
        """ "mass=0.9,margin=0.5,sacred=2,per_layer=8/6/6" -> options. Raises UsageError."""
        parts = [part.strip().partition("=")[::2] for part in text.split(",") if part.strip()]
        given = dict(parts)
        if len(given) < len(parts):
            raise UsageError("a rule is given twice", where="routing", got=text)
        known = {field.name for field in fields(RoutingOptions)}
        if unknown := given.keys() - known:
            expected = ", ".join(f"{name}=..." for name in sorted(known))
            raise UsageError("unknown rule", where="routing", expected=expected, got=min(unknown))
        try:
            return RoutingOptions(**{name: _value(name, text) for name, text in given.items()})
        except ValueError as error:
            expected = "numbers, as mass=0.9"
            raise UsageError(
                "not a number", where="routing", expected=expected, got=text
            ) from error

    def without_k(self) -> Self:
        """The rules that a layer applies itself."""
        return type(self)(**{**vars(self), "k": None})

    @property
    def changes_layers(self) -> bool:
        """Whether a layer has anything to apply."""
        return self.without_k() != RoutingOptions(sacred=self.sacred)

    @property
    def lossy(self) -> str:
        """The rules that are on, as parse takes them; empty if none is."""
        own = RoutingOptions()
        changed = {k: v for k, v in vars(self).items() if v != getattr(own, k)}
        if "margin" in changed:
            changed["sacred"] = self.sacred
        else:
            changed.pop("sacred", None)
        return ",".join(f"{name}={_text(value)}" for name, value in changed.items())


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(
            "wrong value", where=f"routing: {name}", expected=f"{low} to {high}", got=value
        )


def _value(name: str, text: str) -> Any:
    if name == "per_layer":
        return tuple(int(part) for part in text.split("/"))
    return int(text) if name in ("k", "sacred") else float(text)


def _text(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
