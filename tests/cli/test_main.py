import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import flashmoe
from flashmoe.cli import VERBS, make_app

COMMAND = [sys.executable, "-m", "tests.support.scripted_cli"]


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture
def slow() -> Iterator[subprocess.Popen[str]]:
    with start("run", "What?", SCRIPTED_DELAY="0.3", SCRIPTED_REPLY="word " * 50) as process:
        yield process
        process.kill()


def test_version() -> None:
    result = CliRunner().invoke(make_app(), ["--version"])
    assert result.stdout == f"flashmoe {flashmoe.__version__}\n"


def test_help_names_the_verbs_in_order() -> None:
    result = CliRunner().invoke(make_app(), ["--help"])
    assert result.exit_code == 0
    places = [result.stdout.find(f"\n  {verb} ") for verb in VERBS]
    found = [place for place in places if place >= 0]
    assert found
    assert found == sorted(found)


def test_the_usage_line_of_run_reads_as_it_is_typed() -> None:
    result = CliRunner().invoke(make_app(), ["run", "--help"], prog_name="flashmoe")
    assert result.stdout.startswith("Usage: flashmoe run [OPTIONS] [MODEL] PROMPT\n")


def test_an_unknown_verb_exits_with_2() -> None:
    result = CliRunner().invoke(make_app(), ["bogus"])
    assert result.exit_code == 2
    assert "No such command 'bogus'" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "model", "text", "--output"],
        ["eval", "compare", "model", "--output"],
        ["eval", "knobs", "model", "--text", "text", "--output"],
        ["bench", "decode", "model", "--results"],
    ],
    ids=" ".join,
)
def test_a_folder_is_no_file_to_write(arguments: list[str], tmp_path: Path) -> None:
    """Refused before hours of work, not when its result is to be written."""
    result = CliRunner().invoke(make_app(), [*arguments, str(tmp_path)])
    assert result.exit_code == 2
    assert f"'{arguments[-1]}'" in result.stderr
    assert "is a directory" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """The start-up budget of 0.3 s, as a cause that cannot flicker: numpy alone takes 0.1 s."""
    code = (
        "import sys; from flashmoe.cli import make_app; make_app()(standalone_mode=False);"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'rich', 'flashmoe._native'};"
        "print('heavy:', heavy & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert "heavy: set()" in result.stdout


def test_help_is_quick() -> None:
    """Below 0.3 s, in processor time: a busy machine must not fail the test."""
    assert min(help_seconds() for _ in range(5)) < 0.3


def help_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from flashmoe.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_ctrl_c_shows_what_is_there(slow: subprocess.Popen[str]) -> None:
    assert slow.stdout is not None
    first = slow.stdout.read(5)
    slow.send_signal(signal.SIGINT)
    rest, errors = slow.communicate(timeout=20)
    assert slow.returncode == 130
    assert (first + rest).replace("word", "").strip() == ""
    assert rest.endswith("\n")
    assert " tokens (interrupted) | decode" in errors
    assert "Traceback" not in errors


def test_a_closed_pipe_is_quiet(slow: subprocess.Popen[str]) -> None:
    assert slow.stdout is not None
    assert slow.stderr is not None
    slow.stdout.read(5)
    slow.stdout.close()
    assert slow.stderr.read() == ""
    assert slow.wait(timeout=20) == 1


def in_shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with the standard streams that a shell gives it."""
    command = shlex.join([*COMMAND, *arguments])
    return subprocess.run(["sh", "-c", f"{command} {redirection}"], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [("run", "What?"), ("families",), ("--help",)])
def test_a_full_disk_is_told(arguments: tuple[str, ...]) -> None:
    result = in_shell(">/dev/full", *arguments)
    assert result.returncode == 1
    message = "flashmoe: error: the output cannot be written: No space left on device"
    assert result.stderr.splitlines()[-1] == message
    assert "Traceback" not in result.stderr


def test_streams_may_be_closed() -> None:
    assert in_shell(">&-", "run", "What?").returncode == 0
    assert in_shell("2>&-", "run", "What?").stdout == "Good morning to you.\n"
    result = in_shell("<&-", "run", "-")
    assert (result.returncode, result.stderr) == (
        2,
        "flashmoe: error: PROMPT: the prompt is empty\n",
    )


def test_output_that_the_locale_lacks_is_replaced() -> None:
    with start("run", "What?", SCRIPTED_REPLY="é€", PYTHONIOENCODING="latin-1") as process:
        assert process.stdout is not None
        process.stdout.reconfigure(encoding="latin-1")  # type: ignore[attr-defined]
        assert process.stdout.read() == "é?\n"
        process.communicate()
    assert process.returncode == 0
