import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import flashmoe
from flashmoe.cli import make_app
from flashmoe.errors import StorageError
from flashmoe.generate.loop import Piece
from tests.support.scripted_model import Loader, ScriptedModel, sample_stats

REPLY = "Good morning to you."
Run = Callable[..., Result]


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader(ScriptedModel(REPLY, sample_stats()))
    # Not setattr: the lazy attribute would first be loaded.
    monkeypatch.setitem(vars(flashmoe), "load", loader)
    return loader


@pytest.fixture
def run(loader: Loader) -> Run:
    def invoke(*arguments: str, input: str | bytes | None = None) -> Result:
        return CliRunner().invoke(make_app(), ["run", *arguments], input=input)

    return invoke


def test_text_on_stdout_and_one_line_on_stderr(run: Run, loader: Loader) -> None:
    result = run("What?")
    assert result.exit_code == 0
    assert result.stdout == REPLY + "\n"
    assert result.stderr.startswith("6 tokens (stop) | decode 10.0 tok/s")
    assert result.stderr.count("\n") == 1
    assert loader.model.closed


def test_one_argument_is_a_prompt_for_the_demo_model(run: Run, loader: Loader) -> None:
    run("What?")
    assert loader.path is None
    assert loader.options == {}


def test_two_arguments_are_model_and_prompt(run: Run, loader: Loader) -> None:
    run("some/model", "What?")
    assert loader.path == "some/model"


def test_the_prompt_is_a_user_message(run: Run, loader: Loader) -> None:
    run("What?", "--system", "Be brief.")
    assert decoded(loader) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_raw_takes_the_prompt_as_it_stands(run: Run, loader: Loader) -> None:
    run("Once upon", "--raw")
    assert decoded(loader) == "Once upon"


def decoded(loader: Loader) -> str:
    return loader.model.tokenizer.decode(loader.model.prompt, skip_special=False)


def test_a_dash_reads_stdin_without_the_last_line_end(run: Run, loader: Loader) -> None:
    run("-", "--raw", input="one\ntwo\n")
    assert decoded(loader) == "one\ntwo"


def test_engine_options_reach_load(run: Run, loader: Loader) -> None:
    options = "--ram 3G --cache 25% --threads 2 --ctx 100 --experts 4 --isa scalar"
    assert run("What?", *options.split()).exit_code == 0
    assert loader.options == {
        "ram": "3G",
        "cache": "25%",
        "threads": 2,
        "context_length": 100,
        "experts_per_token": 4,
        "isa": "scalar",
    }


def test_sampling_options_reach_generate(run: Run, loader: Loader) -> None:
    options = (
        "--max-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 7 --min-p 0.1 "
        "--repeat-penalty 1.1 --seed 3 --stop A --stop B"
    )
    assert run("What?", *options.split()).exit_code == 0
    chosen = loader.model.options
    assert (chosen.max_tokens, chosen.temperature, chosen.top_p) == (9, 0.5, 0.9)
    assert (chosen.top_k, chosen.min_p, chosen.repeat_penalty) == (7, 0.1, 1.1)
    assert (chosen.seed, chosen.stop) == (3, ("A", "B"))


def test_stop_text_is_not_shown(run: Run) -> None:
    result = run("What?", "--stop", "ning")
    assert result.stdout == "Good mor\n"
    assert "(stop_string)" in result.stderr


def test_json_is_one_object_and_nothing_else(run: Run) -> None:
    result = run("What?", "--json", "--temperature", "0.5", "--experts", "8", "--timing")
    report = json.loads(result.stdout)
    assert result.stderr == ""
    assert report["text"] == REPLY
    assert report["options"]["experts_per_token"] == 8
    assert isinstance(report["options"]["seed"], int)


def test_warnings_are_on_stderr(run: Run, loader: Loader) -> None:
    loader.model.stats = sample_stats(experts_per_token=4, direct_io=False)
    errors = run("What?").stderr.splitlines()
    assert errors[0].startswith("flashmoe: warning: experts per token lowered from 8 to 4")
    assert errors[1].startswith("flashmoe: warning: the file system refuses O_DIRECT")


def test_timing_is_a_table_and_a_sentence(run: Run) -> None:
    errors = run("What?", "--timing").stderr
    assert "disk_wait" in errors
    assert "Decode speed is bound by waiting for the disk" in errors


@pytest.mark.parametrize(
    ("arguments", "input", "message"),
    [
        ([""], None, "PROMPT: the prompt is empty"),
        (["  "], None, "PROMPT: the prompt is empty"),
        (["-"], "", "PROMPT: the prompt is empty"),
        (["-"], b"\xff", "stdin: not UTF-8 text (byte 0)"),
        (["a", "--temperature", "-1"], None, "temperature: wrong value"),
        (["a", "--raw", "--system", "b"], None, "a system message needs the chat template"),
        (["a", "--max-tokens", "x"], None, "max-tokens"),
        (["a", "b", "c"], None, "unexpected extra argument"),
        ([], None, "Missing argument"),
    ],
)
def test_usage_errors_exit_with_2_before_loading(
    run: Run, loader: Loader, arguments: list[str], input: Any, message: str
) -> None:
    result = run(*arguments, input=input)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert loader.path is None
    assert loader.model.prompt == []


def test_a_prompt_past_the_context_exits_with_2(run: Run, loader: Loader) -> None:
    loader.model.context_length = 10
    result = run("What?")
    assert result.exit_code == 2
    assert "expected at most 10 tokens, got" in result.stderr


def test_a_failure_midway_ends_the_line_and_exits_with_1(run: Run, loader: Loader) -> None:
    def pieces(**options: Any) -> Any:
        yield Piece("Good ", 7, -0.1)
        raise StorageError("short read", where="experts-003.safetensors")

    loader.model.generate = pieces  # type: ignore[method-assign, assignment]
    result = run("What?")
    assert result.exit_code == 1
    assert result.stdout == "Good \n"
    assert result.stderr == "flashmoe: error: experts-003.safetensors: short read\n"
    assert loader.model.closed


def test_an_interrupt_keeps_the_text_and_exits_with_130(run: Run, loader: Loader) -> None:
    def pieces(**options: Any) -> Any:
        yield Piece("Good ", 7, -0.1)
        raise KeyboardInterrupt

    loader.model.generate = pieces  # type: ignore[method-assign, assignment]
    result = run("What?")
    assert result.exit_code == 130
    assert result.stdout == "Good \n"
    assert result.stderr.startswith("1 tokens (interrupted) | ")
    assert loader.model.closed
