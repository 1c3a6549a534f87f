"""--trace and `flashmoe trace show` as they are typed, on the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flashmoe.bench.recorded import read_recorded
from flashmoe.cli import make_app
from flashmoe.demo import demo_model_path


def flashmoe(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(make_app(), list(map(str, arguments)), **options)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "story.trace"
    result = flashmoe("run", "--raw", "Once upon a time", "--max-tokens", 12, "--trace", path)
    assert result.exit_code == 0
    return path


def test_run_names_its_trace_and_overwrites_none(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    result = flashmoe("run", "Hello", "--max-tokens", 3, "--trace", path, "--json")
    assert json.loads(result.stdout)["options"]["trace"] == str(path)
    again = flashmoe("run", "Hello", "--max-tokens", 3, "--trace", path)
    assert again.exit_code == 2
    assert "there is a file of this name" in again.stderr


def test_show(trace: Path) -> None:
    lines = flashmoe("trace", "show", trace).stdout.splitlines()
    shown = {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}
    assert shown["model"].startswith("demo_model (")
    assert shown["routing"] == "the model's own"
    assert shown["tokens"].endswith(", 11 of them decoded one at a time")
    assert shown["experts"] == "8 layers of 64; 8.00 used per token"
    assert {"overlap", "busiest tenth", "most used", "router mass", "as it ran"} <= shown.keys()
    found = json.loads(flashmoe("trace", "show", trace, "--json").stdout)
    assert (found["decoded"], found["complete"], found["cut_bytes"]) == (11, True, 0)


def test_show_of_ids_alone(tmp_path: Path) -> None:
    (tmp_path / "ids.jsonl").write_text('{"tok": 1, "layers": [[0, 1]]}\n' * 2)
    shown = flashmoe("trace", "show", tmp_path / "ids.jsonl").stdout
    assert "ids.jsonl, ids only" in shown
    assert "100.0% of a token's experts" in shown
    assert "router mass" not in shown


def test_a_cut_trace_is_said_to_be_cut(trace: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.trace"
    cut.write_bytes(trace.read_bytes()[:-30])
    assert "bytes at the end are no whole record" in flashmoe("trace", "show", cut).stdout
    result = flashmoe("bench", "policies", cut, "--cache", "50%", "--no-record")
    assert "are no whole record and are left out" in result.stderr


def test_policies_under_rules(trace: Path, tmp_path: Path) -> None:
    rules = ("--routing", "k=4", "--routing", "margin=0.5")
    sizes = ("--cache", "25%,50%", "--policy", "lru,lfru")
    results = tmp_path / "rows.jsonl"
    result = flashmoe("bench", "policies", trace, *rules, *sizes, "--results", results)
    assert result.exit_code == 0, result.stderr
    hits, read, mass = (part.splitlines() for part in result.stdout.split("\n\n"))
    names = [line.split("  ")[0] for line in hits[1:]]
    assert names == ["lru", "lfru", "k=4", "k=4", *["margin=0.5,sacred=2"] * 2]
    assert read[0].startswith("read per token")
    assert [line.split("  ")[0] for line in mass[1:3]] == ["as recorded", "k=4"]
    figures = json.loads(results.read_text())["figures"]
    assert (figures["model"], figures["lossy"]) == ("demo_model", "")
    assert len(figures["replays"]) == 3 * 2 * 2
    assert {row["mass"] for row in figures["replays"] if not row["routing"]} == {1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--routing", "k=9"), "too many experts"),
        (("--routing", "all=1"), "unknown rule"),
        (("--policy", "fifo"), "unknown policy"),
        (("--policy", "belady", "--routing", "skip=0.5"), "the optimum is unknown"),
    ],
)
def test_usage_errors_exit_with_2(trace: Path, arguments: tuple[str, str], message: str) -> None:
    result = flashmoe("bench", "policies", trace, *arguments, "--no-record")
    assert result.exit_code == 2
    assert message in result.stderr


def test_eval(tmp_path: Path) -> None:
    text, path = tmp_path / "text", tmp_path / "trace"
    text.write_text("The cat sat on the mat and looked at the moon. " * 20)
    windows = ("--windows", 2, "--window-tokens", 32)
    result = flashmoe("eval", demo_model_path(), "--text", text, *windows, "--trace", path)
    assert result.exit_code == 0, result.stderr
    recorded = read_recorded(path)
    first = [layer for layer in recorded.layers if layer.layer == 0]
    assert sum(len(rows.ids) for layer in first for rows in layer.rows) == 2 * 32


def test_chat(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    result = flashmoe("chat", "--set", "max_tokens=4", "--trace", path, input="Hello\n")
    assert result.exit_code == 0, result.stderr
    assert read_recorded(path).layers


def test_serve(tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    from tests.support.server_process import served

    path = tmp_path / "trace"
    with served("--ctx", "512", "--trace", str(path)) as url:
        body = {"model": "flashmoe-demo", "prompt": "Hello", "max_tokens": 5}
        assert httpx.post(url + "/v1/completions", json=body, timeout=60).status_code == 200
    recorded = read_recorded(path)
    assert sum(facts.decodes for facts in recorded.passes.values()) >= 4
    assert recorded.last is not None
