"""calibrate as it is typed, and what pack says of rounding with and without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flashmoe.cli import make_app
from flashmoe.demo import demo_model_path
from tests.support.tiny_checkpoints import write_checkpoint


def flashmoe(*arguments: object) -> Result:
    return CliRunner().invoke(make_app(), [str(argument) for argument in arguments])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("It was raining when the train left the station. " * 10)
    return path


def test_it_writes_a_file_and_says_how_many_tokens(tmp_path: Path, text: Path) -> None:
    result = flashmoe("calibrate", demo_model_path(), text, "--tokens", 50, "-o", tmp_path / "c")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'c'}: 50 tokens\n")
    assert (tmp_path / "c").is_file()


def test_usage_errors_exit_with_2(tmp_path: Path, text: Path) -> None:
    cases = {
        "nothing to calibrate on": (),
        "cannot read the text": (tmp_path / "absent.txt",),
    }
    for message, texts in cases.items():
        result = flashmoe("calibrate", demo_model_path(), *texts, "-o", tmp_path / "c")
        assert result.exit_code == 2, message
        assert message in result.stderr
    assert flashmoe("calibrate", demo_model_path(), text).exit_code == 2  # no output
    written = ("--sample", 4, "-o", tmp_path / "c")
    assert flashmoe("calibrate", demo_model_path(), *written, "--seed", -1).exit_code == 2


def test_pack_says_what_plain_rounding_costs(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny", "qwen3_moe")
    result = flashmoe("pack", source, tmp_path / "p", "--experts", "q2", "--dense", "bf16")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("experts: ")
    assert " becomes q2 g64, relative RMS error " in lines[1]


def test_bits_need_a_calibration(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny", "qwen3_moe")
    result = flashmoe("pack", source, tmp_path / "p", "--experts-bits", "3")
    assert result.exit_code == 2
    assert "needs a calibration" in result.stderr
