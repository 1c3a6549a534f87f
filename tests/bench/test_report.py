from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flashmoe.bench import report
from flashmoe.bench.plots import draw_plots
from flashmoe.bench.report import read_rows, render, write_report
from flashmoe.errors import UsageError

FIGURES: dict[str, dict[str, Any]] = {
    "decode": {
        "tokens_per_second": {"median": 12.34, "min": 11.0, "max": 13.0},
        "bound_tokens_per_second": 20.0,
        "bound_fraction": 0.617,
        "experts_per_token": 8,
        "cache": {"bytes": 5e8},
        "hit_rate": 0.5,
        "bytes_read_per_token": 2.5e8,
        "disk_bytes_per_s_while_reading": None,
        "python_share": 0.02,
    },
    "prefill": {
        "prompts": [
            {
                "prompt_tokens": 512,
                "tokens_per_second": {"median": 99.5, "min": 99.5, "max": 99.5},
                "time_to_first_token": 5.25,
            }
        ]
    },
    "disk": {
        "cases": [
            {
                "block_bytes": 4096,
                "depth": depth,
                "direct": True,
                "huge_pages": True,
                "bytes_per_s": depth * 1e9,
            }
            for depth in (1, 2)
        ]
    },
    "kernels": {
        "kernels": [
            {"what": "q4 gemv", "isa": "avx2", "threads": 1, "rate": 9.0, "limit": 10.0},
            {"what": "q8 gemv", "isa": "avx2", "threads": 2, "rate": 8.0, "limit": 10.0},
        ]
    },
    "policies": {
        "trace": "some.jsonl",
        "replays": [
            {"policy": policy, "share": share, "hit_rate": share}
            for policy in ("lru", "belady")
            for share in (0.1, 0.5)
        ],
    },
    "compare": {"decode_ram": {"ratio": 1.234}, "bound_fraction": {"ratio": 0.8}},
}
# What a line of each verb has to show.
SHOWN = {
    "decode": ["12.34", "20.00", "61.7%", "50.0%", "0.250", "-", "2.0%"],
    "prefill": ["512: 99.5, 5.2 s"],
    "disk": ["2.00 GB/s (4096 x 2, direct)"],
    "kernels": ["80% (q8 gemv, 2 threads)"],
    "policies": ["some.jsonl", "lru 10.0% at 10%"],
    "compare": ["1.23", "0.80", "-"],
}


def row(verb: str, **changes: Any) -> dict[str, Any]:
    model = {"source": "<Model>", "moe_layers": 24, "experts_format": "q4 g64", "expert_bytes": 1e9}
    return {
        "schema": 1,
        "verb": verb,
        "time": "2026-01-02T03:04:05+00:00",
        "commit": "abc1234",
        "command": f"flashmoe bench {verb}",
        "machine": {"cpu": "Fast & Co", "isa": "avx2"},
        "model": model,
        "limits": {"ram": "8G", "cgroup_bytes": None},
        "start": "cold",
        "options": {"pairs": 3},
        "figures": FIGURES[verb],
    } | changes


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for verb in FIGURES:
        (tmp_path / f"{verb}.jsonl").write_text(json.dumps(row(verb)) + "\n")
    return tmp_path


def cells(page: str) -> list[str]:
    return re.findall(r"<td>(.*?)</td>", page)


@pytest.mark.parametrize("verb", FIGURES)
def test_a_line_is_shown(verb: str) -> None:
    found = cells(render({verb: [row(verb)]}, {}))
    assert found[:2] == ["2026-01-02 03:04", "abc1234"]
    text = "\n".join(found)
    assert all(expected in text for expected in SHOWN[verb])


def test_text_is_escaped() -> None:
    page = render({"decode": [row("decode")]}, {})
    assert "&lt;Model&gt;, 24 layers" in page
    assert "Fast &amp; Co" in page


def test_a_cgroup_is_the_limit_that_counts() -> None:
    limits = {"ram": "8G", "cgroup_bytes": 2_000_000_000}
    assert "2.00 GB cgroup" in cells(render({"decode": [row("decode", limits=limits)]}, {}))


def test_a_figure_that_an_old_line_lacks() -> None:
    old = row("decode", figures={"hit_rate": 0.5})
    assert cells(render({"decode": [old]}, {}))[-8:] == ["-", "-", "-", "50.0%", *"----"]


def test_lines_are_sorted_by_time(results: Path) -> None:
    times = ["2026-03-01T00:00:00+00:00", "2025-01-01T00:00:00+00:00"]
    lines = [json.dumps(row("disk", time=time)) for time in times]
    (results / "disk.jsonl").write_text("\n".join(lines) + "\n")
    assert [found["time"] for found in read_rows(results)["disk"]] == sorted(times)


def test_the_page_needs_nothing_beside_it(results: Path, tmp_path: Path) -> None:
    page = write_report(results, tmp_path / "out").read_text()
    assert page.startswith("<!doctype html>")
    assert all(f"<h2>{verb}</h2>" in page for verb in FIGURES)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_plots_are_written_beside_and_into_the_page(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    page = write_report(results, tmp_path / "out").read_text()
    for verb in ("compare", "decode", "prefill", "disk", "kernels", "policies"):
        png = (tmp_path / "out" / f"{verb}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert f'<img alt="{verb}"' in page


def test_without_matplotlib_there_are_tables_only(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashmoe.bench.plots.find_spec", lambda name: None)
    assert draw_plots(read_rows(results)) == {}
    assert "<img" not in write_report(results, tmp_path / "out").read_text()
    assert [file.name for file in (tmp_path / "out").iterdir()] == [report.PAGE]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not a recorded line"),
        ('{"schema": 99, "verb": "disk"}', "line 2: not a recorded line"),
        ('{"schema": 1}', "line 2: not a recorded line"),
    ],
)
def test_damaged_lines(results: Path, line: str, message: str) -> None:
    with (results / "disk.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=message):
        read_rows(results)


def test_nothing_recorded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is recorded here"):
        read_rows(tmp_path)
