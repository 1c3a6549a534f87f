"""Pages and plots: whole, plain, and at home in one file."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.pages.html import page, paragraph, section, table
from flashmoe.pages.svg import Point, scatter, ticks

POINTS = [
    Point(4.5, 0.004, "q4", 0.002, 0.006),
    Point(3.1, 0.008, "q3", 0.005, 0.011),
    Point(16.0, 0.0, "bf16", 0.0, 0.0),
]


def test_text_cannot_become_markup() -> None:
    text = "<script>alert('&')</script>"
    body = section(text, table([text], [[text]]), paragraph(text, warning=True))
    html = page(text, body + scatter(text, text, text, [Point(1, 1, text, 0, 2)]))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 12


def test_a_plot_is_well_formed_and_has_every_point() -> None:
    root = ElementTree.fromstring(scatter("Loss", "bits", "nats", POINTS))
    assert len(root.findall("circle")) == 3
    assert {"q4", "q3", "bf16"} <= {text.text for text in root.findall("text")}


def test_points_of_a_series_are_joined_in_the_order_of_x() -> None:
    points = [Point(p.x, p.y, p.label, p.low, p.high, "bits") for p in POINTS]
    line = ElementTree.fromstring(scatter("", "", "", points)).find("polyline")
    assert line is not None
    places = [float(pair.split(",")[0]) for pair in line.attrib["points"].split()]
    assert places == sorted(places)
    assert len(places) == 3


def test_everything_lies_within_the_plot() -> None:
    svg = scatter("Loss", "bits", "nats", POINTS)
    for name, limit in (("cx", 760), ("cy", 380), ("y1", 380), ("y2", 380)):
        assert all(0 <= float(v) <= limit for v in re.findall(f' {name}="([^"]+)"', svg)), name


@pytest.mark.parametrize("points", [POINTS[2:], [Point(2, 2, "", 2, 2)] * 2])
def test_a_single_place_has_a_plot(points: list[Point]) -> None:
    assert "<circle" in scatter("", "", "", points)


def test_nothing_has_none() -> None:
    assert scatter("", "", "", []) == ""


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 8
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= tick <= low + span + slack for tick in found)
