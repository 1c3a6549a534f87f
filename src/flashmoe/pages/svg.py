"""Scatter plots as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 34, 50
_COLORS: Final = ("#2f5d8a", "#c0392b", "#3a8a4a", "#8a5a2f", "#6b3fa0", "#2a8f9c", "#777777")
_TICKS: Final = 6


@dataclass(frozen=True)
class Point:
    """A value y at x with its interval; points of a series share a colour and are joined."""

    x: float
    y: float
    label: str
    low: float
    high: float
    series: str = ""


@dataclass(frozen=True)
class _Axis:
    """Values low to high on the pixels start to stop."""

    low: float
    high: float
    start: float
    stop: float

    def place(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.stop - self.start):.1f}"


def scatter(title: str, x_label: str, y_label: str, points: Sequence[Point]) -> str:
    """A plot; "" where there is nothing to show. Points with one name of a series are joined in
    the order of x."""
    if not points:
        return ""
    x = _axis([p.x for p in points], _LEFT, _WIDTH - _RIGHT)
    ends = [end for p in points for end in (p.low, p.high)]
    y = _axis([0.0, *ends], _HEIGHT - _BOTTOM, _TOP)
    names = list(dict.fromkeys(p.series for p in points))
    parts = [*_grid(x, y), *_captions(title, x_label, y_label)]
    for number, name in enumerate(names):
        chosen = sorted((p for p in points if p.series == name), key=lambda p: p.x)
        parts += _series(chosen, x, y, _COLORS[number % len(_COLORS)])
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    style = f'width="{_WIDTH}" height="{_HEIGHT}" role="img" font-family="sans-serif"'
    return f"{head} {style}>\n{chr(10).join(parts)}\n</svg>\n"


def ticks(low: float, high: float) -> list[float]:
    """About six round numbers from low to high, which differ by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _axis(values: Sequence[float], start: float, stop: float) -> _Axis:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return _Axis(low - room, high + room, start, stop)


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    for value in ticks(x.low, x.high):
        place = x.place(value)
        yield _line(place, str(_TOP), place, str(_HEIGHT - _BOTTOM), "#e3e8ee")
        yield _text(place, _HEIGHT - _BOTTOM + 16, f"{value:g}", "middle")
    for value in ticks(y.low, y.high):
        place = y.place(value)
        color = "#8899aa" if value == 0 else "#e3e8ee"
        yield _line(str(_LEFT), place, str(_WIDTH - _RIGHT), place, color)
        yield _text(_LEFT - 6, float(place) + 4, f"{value:g}", "end")


def _captions(title: str, x_label: str, y_label: str) -> Iterator[str]:
    yield f"<title>{escape(title)}</title>"
    yield _text(_LEFT, 18, title, "start", size=14)
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_label, "middle")
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f' transform="rotate(-90 16 {middle:.0f})"'
    yield _text(16, middle, y_label, "middle", more=turned)


def _series(points: Sequence[Point], x: _Axis, y: _Axis, color: str) -> Iterator[str]:
    if points[0].series and len(points) > 1:
        line = " ".join(f"{x.place(p.x)},{y.place(p.y)}" for p in points)
        yield f'<polyline points="{line}" fill="none" stroke="{color}" stroke-opacity=".45"/>'
    for p in points:
        place = x.place(p.x)
        yield _line(place, y.place(p.low), place, y.place(p.high), color)
        told = escape(f"{p.label}: {p.y:.4f} ({p.low:.4f} to {p.high:.4f}) at {p.x:g}")
        yield (
            f'<circle cx="{place}" cy="{y.place(p.y)}" r="4" fill="{color}">'
            f"<title>{told}</title></circle>"
        )
        near_edge = float(place) > _LEFT + 0.75 * (_WIDTH - _LEFT)
        side, anchor = (-7, "end") if near_edge else (7, "start")
        yield _text(float(place) + side, float(y.place(p.y)) - 6, p.label, anchor, color=color)


def _line(x1: str, y1: str, x2: str, y2: str, color: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}"/>'


def _text(
    x: float | str,
    y: float,
    text: str,
    anchor: str,
    *,
    size: int = 11,
    color: str = "#223",
    more: str = "",
) -> str:
    place = f'x="{x}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}"'
    return f"<text {place}{more}>{escape(text)}</text>"
