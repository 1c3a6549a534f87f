"""flashmoe bench as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flashmoe.bench import kernels as kernel_bench
from flashmoe.cli import make_app
from flashmoe.cli.bench import VERBS
from flashmoe.cli.bench.output import table
from flashmoe.ops import devices

TRACE = '{"tok": 1, "layers": [[0, 1], [2, 3]]}\n' * 3


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(make_app(), ["bench", *map(str, arguments)])


def recorded(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "trace.jsonl").write_text(TRACE)
    return tmp_path / "trace.jsonl"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_help_names_the_verbs_in_order() -> None:
    result = bench("--help")
    assert result.exit_code == 0
    places = [result.stdout.find(f"\n  {verb} ") for verb in VERBS]
    assert min(places) > 0
    assert places == sorted(places)


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_imports_nothing_heavy(verb: str | None) -> None:
    code = (
        "import sys; from flashmoe.cli import make_app; make_app()(standalone_mode=False);"
        "print('heavy:', {'numpy', 'matplotlib', 'flashmoe._native'} & {*sys.modules})"
    )
    arguments = ["bench", *([verb] if verb else []), "--help"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert "heavy: set()" in result.stdout


def test_an_unknown_verb_exits_with_2() -> None:
    result = bench("bogus")
    assert result.exit_code == 2
    assert "No such command 'bogus'" in result.stderr


@pytest.mark.usefixtures("fixed_rates")
def test_decode(tiny_pack: Path, file: Path) -> None:
    sizes = ("--tokens", 4, "--prompt-tokens", 2, "--repeat", 2)
    result = bench("decode", tiny_pack, *sizes, "--cache", "all", "--results", file)
    assert result.exit_code == 0
    names = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert names[:5] == ["model", "decode", "bound", "hit rate", "per token"]
    (row,) = recorded(file)
    assert (row["verb"], row["start"]) == ("decode", "cold")
    assert row["options"]["engine"] == {"cache": "all"}
    assert row["model"]["family"] == "qwen3_moe"


@pytest.mark.usefixtures("fixed_rates")
def test_decode_as_json_prints_the_recorded_line(
    tiny_pack: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHMOE_RAM", "1G")
    sizes = ("--tokens", 2, "--prompt-tokens", 1, "--repeat", 1, "--warm")
    result = bench("decode", tiny_pack, *sizes, "--json", "--results", file)
    assert recorded(file) == [json.loads(result.stdout)]
    row = json.loads(result.stdout)
    assert (row["start"], row["limits"]["ram"]) == ("warm", "1G")


def test_prefill(tiny_pack: Path, file: Path) -> None:
    result = bench("prefill", tiny_pack, "--tokens", "3,70", "--results", file)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["tokens", "3", "70"]
    rows = recorded(file)  # one per length
    assert [[p["prompt_tokens"] for p in row["figures"]["prompts"]] for row in rows] == [[3], [70]]
    assert {row["start"] for row in rows} == {"cold"}


def test_startup(tiny_pack: Path, file: Path) -> None:
    result = bench("startup", tiny_pack, "--repeat", 1, "--results", file)
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        "model",
        "help",
        "open",
        "parts",
        "reading",
        "first token",
    ]
    (row,) = recorded(file)
    assert row["start"] == "cold"
    assert row["figures"]["open_seconds"] > 0


def test_disk_of_a_model(tiny_pack: Path, file: Path) -> None:
    result = bench("disk", tiny_pack, "--depth", "1,2", "--seconds", 0.01, "--results", file)
    assert result.exit_code == 0
    (row,) = recorded(file)
    assert len(row["figures"]["cases"]) == 2 * 4
    assert all(case["bytes_per_s"] > 0 for case in row["figures"]["cases"])
    assert len(result.stdout.splitlines()) == 1 + 2 * 4


def test_disk_of_a_file(tmp_path: Path, file: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(1 << 16))
    options = ("--block", "8192", "--depth", "1", "--seconds", 0.01)
    assert bench("disk", tmp_path / "data", *options, "--results", file).exit_code == 0
    assert {case["block_bytes"] for case in recorded(file)[0]["figures"]["cases"]} == {8192}


def test_disk_of_nothing(tmp_path: Path) -> None:
    result = bench("disk", tmp_path / "absent", "--no-record")
    assert result.exit_code == 1
    assert "absent: cannot be read" in result.stderr


def test_disk_of_a_file_too_small(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(8192))
    result = bench("disk", tmp_path / "data", "--no-record")
    assert result.exit_code == 2
    assert "data: too small to measure a disk with; expected at least 262144" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decode", "--seed", -1), "--seed"),
        (("prefill", "--seed", -1), "--seed"),
        (("concurrency", "--seed", -1), "--seed"),
        (("concurrency", "--long-prompt", -1), "--long-prompt: wrong value; expected at least 1"),
        (
            ("concurrency", "--streams", "0,1"),
            "--streams: out of range; expected numbers from 1 on",
        ),
        (("disk", "--seconds", -1), "--seconds"),
        (("disk", "--seconds", "nan"), "--seconds"),
        (("disk", "--depth", "0"), "--depth: out of range; expected numbers from 1 to 1024"),
        (("disk", "--depth", "50000"), "--depth: out of range"),
        (("card", "--repeat", 0), "--repeat: must be at least 1"),
        (("card",), "--device: CUDA cannot be used"),
    ],
)
def test_careless_options_exit_with_2(
    tiny_pack: Path, arguments: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "driver_present", lambda root=None: False)
    verb, *options = arguments
    result = bench(verb, tiny_pack, *options, "--no-record")
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("threads", ["0", "-1", "1,5000"])
def test_kernels_on_impossible_threads(threads: str) -> None:
    result = bench("kernels", "--threads", threads, "--no-record")
    assert result.exit_code == 2
    assert "--threads: out of range; expected numbers from 1 to 1024" in result.stderr


def test_concurrency_records_the_limit_of_the_environment(
    tiny_pack: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHMOE_RAM", "1G")
    result = bench("concurrency", tiny_pack, "--streams", 1, "--tokens", 2, "--results", file)
    assert result.exit_code == 0
    (row,) = recorded(file)
    assert row["limits"]["ram"] == row["options"]["engine"]["ram"] == "1G"


def test_a_line_that_cannot_be_written_is_shown(trace: Path) -> None:
    result = bench("policies", trace, "--slots", 4, "--results", trace / "below-a-file")
    assert result.exit_code == 1
    assert "below-a-file: cannot write" in result.stderr
    assert "hit rate" in result.stdout


def test_a_folder_for_the_line_is_refused_before_anything_is_measured(
    trace: Path, tmp_path: Path
) -> None:
    result = bench("policies", trace, "--slots", 4, "--results", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is a directory" in result.stderr


def test_a_line_is_recorded_though_nobody_reads_the_output(trace: Path, file: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from flashmoe.cli import main; main()"]
    arguments = ["bench", "policies", str(trace), "--slots", "4", "--results", str(file)]
    subprocess.run([*command, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert len(recorded(file)) == 1


def test_kernels(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = kernel_bench.Figure("q4", "B", rate=12e9, limit=24e9)
    monkeypatch.setattr(kernel_bench, "figures", lambda threads: [figure] * threads)
    result = bench("kernels", "--threads", "1,2", "--results", file)
    assert result.exit_code == 0
    assert result.stdout.count("12.0 of    24.0 GB/s") == 3
    found = recorded(file)[0]["figures"]["kernels"]
    assert [kernel["threads"] for kernel in found] == [1, 2, 2]
    assert (found[0]["rate"], found[0]["limit"]) == (12e9, 24e9)


def test_kernels_of_another_machine() -> None:
    result = bench("kernels", "--isa", "scalar,sparc", "--no-record")
    assert result.exit_code == 2
    assert "--isa: unknown kernels" in result.stderr


def test_policies(trace: Path, file: Path) -> None:
    result = bench("policies", trace, "--slots", "2,8", "--results", file)
    assert result.exit_code == 0
    first, *rows = result.stdout.splitlines()
    assert first == "hit rate  2 slots (25%)  8 slots (100%)"
    # Two tokens of three find all they want where all fits.
    assert [row.split()[-1] for row in rows] == ["66.7%"] * 6
    assert rows[0].split() == ["lru", "0.0%", "66.7%"]
    found = recorded(file)[0]["figures"]
    assert (found["decoded_tokens"], found["experts"], len(found["replays"])) == (3, 8, 12)


def test_policies_by_share(trace: Path, file: Path) -> None:
    arguments = ("--cache", "50%,100%", "--experts", 8, "--results", file)
    assert bench("policies", trace, *arguments).exit_code == 0
    found = recorded(file)[0]["figures"]["replays"]
    assert sorted({replay["slots"] for replay in found}) == [8, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cache", "2G"), "--cache: not shares"),
        (("--slots", "many"), "--slots: not numbers"),
        (("--slots", "1"), "the cache is too small"),
        (("--experts", "2"), "expert id out of range"),
    ],
)
def test_policies_usage_errors_exit_with_2(
    trace: Path, arguments: tuple[str, str], message: str
) -> None:
    result = bench("policies", trace, *arguments, "--no-record")
    assert result.exit_code == 2
    assert message in result.stderr


def test_lines_go_to_the_checkout_of_the_working_directory(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "src/flashmoe").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "src")
    assert bench("policies", trace, "--slots", 4).exit_code == 0
    assert bench("policies", trace, "--slots", 4, "--no-record").exit_code == 0
    assert len(recorded(tmp_path / "bench/results/policies.jsonl")) == 1


def test_outside_of_a_checkout_nothing_is_written(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench("policies", trace, "--slots", 4)
    assert result.exit_code == 0
    assert "not recorded" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trace.jsonl"]


def test_report(trace: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    bench("policies", trace, "--slots", 4, "--results", results / "policies.jsonl")
    result = bench("report", "--results", results, "--out", tmp_path / "out")
    assert result.stdout == f"{tmp_path / 'out' / 'index.html'}\n"
    assert "<h2>policies</h2>" in (tmp_path / "out/index.html").read_text()


def test_report_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench("report")
    assert result.exit_code == 2
    assert "no recorded lines to show" in result.stderr


def test_table_aligns_columns() -> None:
    assert table(("a", "bb"), [("long", 1), ("x", 22.5)]) == ("a       bb\nlong     1\nx     22.5")
