"""The command as it is typed, with the demo model: text, figures, exit codes, no tracebacks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashmoe import _native
from flashmoe.bench.shapes import SHAPES
from flashmoe.cli import make_app
from flashmoe.demo import demo_model_path
from flashmoe.stats import PHASES
from tests.support.tiny_checkpoints import write_checkpoint

QUESTION = "What is the capital of Italy?"
ANSWER = "The capital of Italy is Rome.\n"
# Long enough to be interrupted.
STORY = ["run", "--raw", "Once upon a time", "--max-tokens", "3000", "--cache", "0"]
COMMAND = [sys.executable, "-c", "from flashmoe.cli import main; main()"]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_a_question_is_answered() -> None:
    done = run("run", QUESTION)
    assert (done.returncode, done.stdout) == (0, ANSWER)
    assert done.stderr.count("\n") == 1
    for figure in ("tokens (stop)", "tok/s", "first token", "hit rate", "GB read", "peak RSS"):
        assert figure in done.stderr


def test_a_model_by_name_and_a_prompt_from_stdin() -> None:
    done = run("run", demo_model_path(), "-", input=QUESTION + "\n")
    assert (done.returncode, done.stdout) == (0, ANSWER)


@pytest.mark.parametrize(
    "options",
    ["--cache 0", "--cache 10%", "--cache all", "--ram 400M", "--threads 1", "--isa scalar"],
)
def test_engine_options_do_not_change_the_answer(options: str) -> None:
    done = run("run", QUESTION, *options.split())
    assert (done.returncode, done.stdout) == (0, ANSWER)


@pytest.mark.skipif("avx2" not in _native.available_isas(), reason="this machine has no AVX2")
def test_scalar_and_avx2_give_the_same_text() -> None:
    # The token after these is a tie: its two best logits are 0.001 apart, less than rounding.
    story = ["run", "--raw", "Once upon a time", "--max-tokens", "16", "--isa"]
    assert run(*story, "scalar").stdout == run(*story, "avx2").stdout


def test_json() -> None:
    done = run("run", QUESTION, "--json", "--cache", "0", "--threads", "1")
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert report["text"] + "\n" == ANSWER
    assert report["tokens"] == len(report["token_ids"])
    assert report["finish_reason"] == "stop"
    assert report["timings"]["decode_tokens"] == report["tokens"] - 1
    assert report["cache"]["cache_misses"] > 0
    assert report["cache"]["cache_hits"] == 0
    assert report["engine"]["threads"] == 1
    assert report["memory"]["peak_rss"] > report["memory"]["resident_bytes"] > 0
    assert {*report["timings"]["phase_seconds"]} <= {*PHASES}


def test_timing() -> None:
    done = run("run", QUESTION, "--timing")
    assert done.stdout == ANSWER
    for part in (
        "prefill (",
        "decode (",
        "disk_wait",
        "delta",
        "router",
        "Decode speed is bound by",
    ):
        assert part in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", ""], 2, "PROMPT: the prompt is empty"),
        (["run", "/nowhere", "a"], 2, "/nowhere: is not a directory"),
        (["run", "a", "--cache", "1K"], 2, "--cache: smaller than what one step needs"),
        (["run", "a", "--ctx", "5000"], 2, "longer than the model's context"),
        (["run", "a", "--experts", "9"], 2, "expected 1 to 8, got 9"),
        (["run", "a " * 200, "--ctx", "100"], 2, "the prompt does not fit the context"),
        (["run", "a", "--isa", "mmx"], 2, "isa: this machine cannot run these kernels"),
        (["run", "a", "--ram", "20M"], 1, "the model does not fit the memory limit"),
        (["info", "/usr"], 1, "/usr: not a packed model"),
        (["verify", "/nowhere"], 2, "/nowhere: is not a directory"),
        (["eval", demo_model_path()], 2, "nothing to measure"),
        (["eval", demo_model_path(), "--text", "/nowhere"], 2, "/nowhere"),
        (["eval", demo_model_path(), "--tool-calls", "/nowhere"], 2, "/nowhere"),
        (["synth", "bogus", "/tmp/never"], 2, "SHAPE: unknown shape"),
        (["synth", "qwen3-30b-a3b", "/tmp/never", "--layers", "49"], 2, "1 to 48"),
        (["pack", "/nowhere", "/tmp/never"], 2, "/nowhere"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    arguments: list[object], code: int, message: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_ctrl_c_ends_cleanly() -> None:
    with start(*STORY) as process:
        assert process.stdout is not None
        first = process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(first) == 10
    assert rest.endswith("\n")
    assert "tokens (interrupted) | decode" in errors
    assert "Traceback" not in errors


def test_a_closed_pipe_is_quiet() -> None:
    with start(*STORY) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 1


def test_info_and_verify_of_the_demo_model() -> None:
    assert "8 layers of 64, 8 per token" in run("info", demo_model_path()).stdout
    assert run("verify", demo_model_path()).stdout.endswith(": sound\n")


def test_pack_info_verify_and_run_of_a_new_model(tmp_path: Path) -> None:
    """A checkpoint without tokenizer: all but text works."""
    source = write_checkpoint(tmp_path / "source", "qwen3_moe")
    (source / "tokenizer.json").unlink()
    assert run("pack", source, tmp_path / "pack", "--quiet").returncode == 0
    assert run("verify", tmp_path / "pack").returncode == 0
    assert json.loads(run("info", tmp_path / "pack", "--json").stdout)["family"] == "qwen3_moe"
    done = run("run", tmp_path / "pack", "Hello")
    assert done.returncode == 1
    assert "tokenizer.json: the pack has no tokenizer" in done.stderr


def test_eval(tmp_path: Path) -> None:
    text, cases = tmp_path / "text", tmp_path / "cases"
    text.write_text("The old man went down to the sea, and the sea was calm. " * 40)
    case = {"messages": [{"role": "user", "content": QUESTION}], "tools": [], "expected": {}}
    cases.write_text(json.dumps(case))
    options = ["--windows", 2, "--window-tokens", 64, "--json"]
    done = run("eval", demo_model_path(), "--text", text, "--tool-calls", cases, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["nll"] < 6
    assert result["scored_tokens"] == 2 * 63
    assert {"cases": 1, "valid_json": 0, "exact": 0}.items() <= result["tool_calls"].items()
    assert run("eval", demo_model_path(), "--text", text, "--windows", 99).returncode == 2


@pytest.mark.parametrize("damage", [b"\xff\xfe", b""])
def test_eval_of_what_is_no_text(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "text").write_bytes(damage)
    done = run("eval", demo_model_path(), "--text", tmp_path / "text")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_synth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {**SHAPES["qwen3-30b-a3b"], "hidden_size": 256, "moe_intermediate_size": 64}
    monkeypatch.setitem(SHAPES, "small", {**shape, "num_experts": 32, "vocab_size": 500})
    done = CliRunner().invoke(make_app(), ["synth", "small", f"{tmp_path}/m", "--layers", "3"])
    assert done.exit_code == 0
    assert "of 48 random tokens uses" in done.stdout
    assert "3 layers of 32, 8 per token" in run("info", tmp_path / "m").stdout
    answer = run("run", tmp_path / "m", "--raw", "a", "--max-tokens", 5)
    assert answer.returncode == 0
    assert "5 tokens (length)" in answer.stderr
