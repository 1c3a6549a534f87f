"""The whole comparison on a tiny model, with a script in the peer's place."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashmoe.bench import shapes
from flashmoe.bench.compare import journal, measure, peer
from flashmoe.bench.compare.child import Program
from flashmoe.bench.compare.instructions import lacking_instructions
from flashmoe.bench.compare.journal import NAME
from flashmoe.bench.compare.measure import CompareOptions, measure_comparison
from flashmoe.bench.compare.rows import chosen_rows
from flashmoe.cli import make_app
from flashmoe.errors import UsageError
from tests.bench.compare_support import TINY

_FAKE = f"""
import sys
sys.path.insert(0, {str(Path(peer.__file__).parent)!r})
from peer import serve

def write(plan, emit):
    open(plan["path"], "wb").write(b"GGUF")
    return {{"bytes": 4}}

def run(request, emit):
    emit("progress", "peer")
    count = len(request["ids"])
    rate = {{"mmap": 1, "read": 2, "repack": 4}}[request["settings"]["memory"]]
    seconds = count / rate
    return {{"tokens": count, "seconds": seconds, "disk_bytes": 0, "peak_bytes": 1}}

def routing(request, emit):
    return {{"distinct": [8, 7], "version": "fake 1", "cpu": "CPU : NONE = 1"}}

sys.exit(serve({{"write": write, "run": run, "routing": routing}}))
"""


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    script = tmp_path / "peer.py"
    script.write_text(_FAKE)
    fake = Program("fake", [sys.executable, str(script)])
    monkeypatch.setattr(measure, "peer_program", lambda python: fake)


def options(folder: Path, only: str, **more: Any) -> CompareOptions:
    given = {"shape": "tiny", "layers": None, "threads": 1, "pairs": 2, "peer_python": "python"}
    return CompareOptions(folder=folder, rows=chosen_rows(only), **{**given, **more})


def test_rows_in_memory(tmp_path: Path) -> None:
    said: list[str] = []
    figures = measure_comparison(options(tmp_path / "m", "decode_ram,prefill_ram"), said.append)
    assert list(figures) == ["decode_ram", "prefill_ram", "details"]
    for row in (figures["decode_ram"], figures["prefill_ram"]):
        assert row["pairs"] == 2
        assert row["peer_median"] == 4.0
        assert row["ratio"] == pytest.approx(row["flashmoe_median"] / 4.0)
    details = json.loads(json.dumps(figures["details"], allow_nan=False))
    assert [row["start"] for row in details["rows"]] == ["warm", "warm"]
    runs = [pair["flashmoe"] for row in details["rows"] for pair in row["runs"]]
    assert [run["engine"]["bytes_read"] for run in runs] == [0, 0, 0, 0]
    assert details["peer_routing"]["distinct_experts"] == [8, 7]
    assert details["peer_build"] == {"version": "fake 1", "cpu": "CPU : NONE = 1"}
    assert details["notes"][0].startswith("the disk's read-ahead")
    trials = [row for row in details["peer_trials"] if row["kind"] == "prefill"]
    assert [row["micro_batch"] for row in trials] == [512, 512, 512, 512, 256, 128]
    assert {run["settings"]["memory"] for run in peers(details)} == {"repack"}


def peers(details: dict[str, Any]) -> list[dict[str, Any]]:
    return [pair["peer"] for row in details["rows"] for pair in row["runs"]]


def test_a_peer_that_was_not_built_for_this_processor() -> None:
    built = "CPU : SSE3 = 1 | AVX2 = 1 | FMA = 0 | AVX512 = 1 |"
    assert lacking_instructions(built, {"avx2", "avx512f", "sse3"}) == []
    (note,) = lacking_instructions(built, {"avx2", "fma", "avx512_vnni"})
    assert note.startswith("llama.cpp was built without FMA, AVX512_VNNI:")


def test_who_comes_first_alternates(tmp_path: Path) -> None:
    said: list[str] = []
    measure_comparison(options(tmp_path / "m", "decode_ram", pairs=3), said.append)
    order = ["peer" if "peer" in text else "ours" for text in said if _starts_a_run(text)]
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]


def _starts_a_run(text: str) -> bool:
    return ", pair " in text and text.endswith((": peer", ": flashmoe: loading"))


def test_models_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    measure_comparison(options(folder, "decode_ram", pairs=1), lambda text: None)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*/*")}
    measure_comparison(options(folder, "decode_ram", pairs=1), lambda text: None)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*/*")} == before
    assert {file.name for file in folder.iterdir()} == {"tiny-2", "tiny-2.gguf", NAME}


class Killed(Exception):
    """In the place of a signal."""


def killed_at(text: str) -> Callable[[str], None]:
    def progress(said: str) -> None:
        if text in said:
            raise Killed

    return progress


def test_a_comparison_that_was_killed_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with pytest.raises(Killed):
        measure_comparison(options(folder, "decode_ram", pairs=3), killed_at("pair 2 of 3: peer"))
    said: list[str] = []
    chosen = options(folder, "decode_ram", pairs=3, resume=True)
    figures = measure_comparison(chosen, said.append)
    runs = [text for text in said if _starts_a_run(text)]
    assert [text.split(":")[0] for text in runs] == ["decode_ram, pair 2 of 3"] * 2 + [
        "decode_ram, pair 3 of 3"
    ] * 2
    assert not any("trying" in text for text in said)
    assert figures["decode_ram"]["pairs"] == 3
    assert len(figures["details"]["peer_trials"]) == 4
    assert len(figures["details"]["commands"]) == 2
    assert figures["details"]["notes"][-1].startswith("put together from commands begun at 20")


def test_rows_of_several_commands_are_put_together(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    alone = [
        measure_comparison(options(folder, row, resume=True), lambda text: None)[row]
        for row in ("decode_ram", "prefill_ram")
    ]
    announced: list[str] = []
    both = options(folder, "decode_ram,prefill_ram", resume=True)
    figures = measure_comparison(both, lambda text: None, announced.append)
    assert [figures["decode_ram"], figures["prefill_ram"]] == alone
    assert announced == []


def test_without_resume_everything_is_measured_anew(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for _ in range(2):
        announced: list[str] = []
        chosen = options(folder, "decode_ram")
        figures = measure_comparison(chosen, lambda text: None, announced.append)
        assert len(announced) == 4 + 2  # trials and pairs
        assert all(text.endswith(" minutes") for text in announced)
        assert len(figures["details"]["commands"]) == 1


def test_another_program_resumes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    measure_comparison(options(folder, "decode_ram", pairs=1), lambda text: None)
    monkeypatch.setattr(journal, "program_digest", lambda: "other")
    chosen = options(folder, "decode_ram", pairs=1, resume=True)
    figures = measure_comparison(chosen, lambda text: None)
    assert len(figures["details"]["commands"]) == 1


def test_another_model_in_its_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    measure_comparison(options(folder, "decode_ram", pairs=1), lambda text: None)
    monkeypatch.setitem(shapes.SHAPES, "tiny", {**TINY, "rope_theta": 1e4})
    with pytest.raises(UsageError, match="another model than asked for"):
        measure_comparison(options(folder, "decode_ram"), lambda text: None)


def test_numbers_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--pairs"):
        options(tmp_path, "decode_ram", pairs=0)


def test_the_verb_prints_one_object_and_records_the_line(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    command = ["bench", "compare", "--shape", "tiny", "--layers", "1", "--threads", "1"]
    command += ["--pairs", "1", "--dir", str(tmp_path / "m"), "--only", "decode_ram", "--json"]
    result = CliRunner().invoke(make_app(), [*command, "--results", str(lines)])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert set(figures["decode_ram"]) >= {"ratio", "flashmoe_median", "peer_median", "pairs"}
    line = json.loads(lines.read_text())
    assert (line["verb"], line["figures"]) == ("compare", figures)
    assert line["model"]["family"] == "qwen3_moe"
