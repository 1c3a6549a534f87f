"""Rules of routing on the embedded model: rows, what is kept, the fixed K beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import flashmoe
from flashmoe.demo import demo_model_path
from flashmoe.evals.frontier import fixed_k_at, is_fixed, kind_of
from flashmoe.evals.knobs import measure_knobs
from flashmoe.evals.measure import EvalOptions
from flashmoe.evals.report import knob_cells, knobs_page


def measured(options: EvalOptions, *rules: str) -> list[dict[str, Any]]:
    options = replace(options, engine={"cache": "25%", "prefetch": "off"})
    return list(measure_knobs(demo_model_path(), rules, options, lambda text: None))


def test_fewer_experts_read_less_and_lose_something(options: EvalOptions) -> None:
    exact, fewer = measured(options, "k=2")
    assert exact["delta_nll"]["mean"] == 0
    assert fewer["bytes_per_token"] < exact["bytes_per_token"]
    assert fewer["experts_per_token_and_layer"] == 2
    assert fewer["kl_mean"] > 0
    assert fewer["lossy"]


def test_a_second_run_measures_only_what_is_new(
    options: EvalOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = measured(options, "k=2")
    opened: list[object] = []
    load = flashmoe.load

    def counted(*args: Any, **settings: Any) -> Any:
        opened.append(settings["routing"])
        return load(*args, **settings)

    monkeypatch.setattr(flashmoe, "load", counted)
    assert measured(options, "k=2") == before
    assert opened == []
    after = measured(options, "k=2", "k=4")
    assert opened == ["k=4"]
    assert after[:2] == before


def test_another_text_is_measured_anew(options: EvalOptions) -> None:
    assert options.text is not None
    before = measured(options)
    options.text.write_text(options.text.read_text()[::-1])
    assert measured(options)[0]["nll"] != before[0]["nll"]


def row(rule: str, kb: float, loss: float) -> dict[str, Any]:
    return {"rule": rule, "bytes_per_token": kb, "delta_nll": {"mean": loss}}


def test_a_fixed_k_at_the_same_bytes_lies_between_its_neighbours() -> None:
    rows = [row("", 8, 0.0), row("k=4", 4, 0.1), row("mass=0.8", 5, 0.01), row("k=2", 2, 0.3)]
    assert fixed_k_at(rows, 6) == pytest.approx(0.05)
    assert fixed_k_at(rows, 3) == pytest.approx(0.2)
    assert fixed_k_at(rows, 1) is None
    assert fixed_k_at(rows[:1], 8) is None


def test_kinds_of_rules() -> None:
    assert [kind_of(rule) for rule in ("", "k=4", "margin=0.5,sacred=1")] == ["k", "k", "margin"]
    assert [is_fixed(rule) for rule in ("", "k=12", "k=4,skip=1", "mass=1")] == [1, 1, 0, 0]


def test_the_page_has_every_rule_and_the_table_its_columns(options: EvalOptions) -> None:
    rows = measured(options, "k=2", "k=4", "mass=0.7")
    header, lines = knob_cells(rows)
    assert {len(line) for line in lines} == {len(header)}
    html = knobs_page({"text": "ours"}, rows)
    assert all(f"<td>{rule}</td>" in html for rule in ("exact", "k=2", "k=4", "mass=0.7"))
    assert html.count("<circle") == 4
