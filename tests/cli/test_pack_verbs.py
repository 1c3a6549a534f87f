"""pack, info and verify as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flashmoe.cli import make_app
from flashmoe.cli.units import human_bytes, human_count
from tests.support.tiny_checkpoints import write_checkpoint


def flashmoe(*arguments: object) -> Result:
    return CliRunner().invoke(make_app(), [str(argument) for argument in arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", "qwen3_5_moe")


@pytest.fixture
def pack(tmp_path: Path, source: Path) -> Path:
    assert flashmoe("pack", source, tmp_path / "pack", "--quiet").exit_code == 0
    return tmp_path / "pack"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)


def test_pack_says_what_it_made(tmp_path: Path, source: Path) -> None:
    result = flashmoe("pack", source, tmp_path / "p", "--experts", "q8", "--group", "32")
    assert result.exit_code == 0
    size = sum(file.stat().st_size for file in (tmp_path / "p").iterdir())
    assert result.stdout.startswith(f"{tmp_path / 'p'}: {human_bytes(size)} in ")


def test_quiet_pack_prints_nothing(tmp_path: Path, source: Path) -> None:
    result = flashmoe("pack", source, tmp_path / "p", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_pack_usage_errors_exit_with_2(tmp_path: Path, source: Path, pack: Path) -> None:
    cases = {
        "destination already exists": (source, pack),
        "is not a checkpoint directory": (tmp_path / "absent", tmp_path / "p"),
        "--experts: unknown weight format": (source, tmp_path / "p", "--experts", "q7"),
        "does not fit": (source, tmp_path / "p", "--group", "128"),
    }
    for message, arguments in cases.items():
        result = flashmoe("pack", *arguments)
        assert result.exit_code == 2, message
        assert message in result.stderr
        assert not (tmp_path / "p").exists()


def test_pack_of_a_damaged_checkpoint_exits_with_1(tmp_path: Path, source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = flashmoe("pack", source, tmp_path / "p")
    assert result.exit_code == 1
    assert "model.safetensors: file is truncated" in result.stderr


def test_info(pack: Path) -> None:
    result = flashmoe("info", pack)
    assert result.exit_code == 0
    assert "qwen3_5_moe (from tiny)" in result.stdout
    assert "experts q4 g64, dense q8 g64" in result.stdout
    assert "4 layers of 6, 2 per token" in result.stdout


def test_info_as_json(pack: Path) -> None:
    facts = json.loads(flashmoe("info", pack, "--json").stdout)
    assert facts["family"] == "qwen3_5_moe"
    assert facts["bytes_per_token"] == 4 * 2 * facts["record_bytes"]
    assert facts["total_bytes"] == sum(file.stat().st_size for file in pack.iterdir())


def test_info_and_verify_of_a_checkpoint(source: Path) -> None:
    result = flashmoe("info", source)
    assert result.exit_code == 0
    assert "experts bf16, dense bf16" in result.stdout
    assert "no checksums" in flashmoe("verify", source).stdout


def test_info_of_something_else(tmp_path: Path) -> None:
    result = flashmoe("info", tmp_path)
    assert result.exit_code == 1
    assert "not a packed model" in result.stderr


def test_verify(pack: Path) -> None:
    result = flashmoe("verify", pack)
    assert (result.exit_code, result.stdout) == (0, f"{pack}: sound\n")
    assert flashmoe("verify", pack, "--quiet").stdout == ""
    assert json.loads(flashmoe("verify", pack, "--json").stdout) == {"sound": True, "damages": []}


def test_verify_of_a_damaged_pack(pack: Path) -> None:
    damage(pack / "experts-001.safetensors")
    damage(pack / "resident.safetensors")
    result = flashmoe("verify", pack)
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{pack / 'resident.safetensors'}: ")
    assert second.startswith(f"{pack / 'experts-001.safetensors'}: expert 5: checksum")
    found = json.loads(flashmoe("verify", pack, "--json").stdout)
    assert found == {"sound": False, "damages": [first, second]}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (18_250_000_000, "18.2 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_human_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


def test_human_count() -> None:
    assert [human_count(n) for n in (7, 32_300_000, 30_532_122_624)] == ["7", "32.3M", "30.5B"]
