from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flashmoe.cli import make_app

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from flashmoe.server import hosting


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of hosting.serve, which does nothing here."""
    calls: list[Any] = []
    monkeypatch.setattr(hosting, "serve", lambda *arguments: calls.append(arguments))
    return calls


def run(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(), ["serve", *arguments])


def test_localhost_without_a_key_is_the_default(served: list[Any]) -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    settings, name, *_ = served[0]
    assert (settings.host, settings.port, settings.keys) == ("127.0.0.1", 8080, ())
    assert name == "flashmoe-demo"


def test_the_model_is_named_after_its_directory(served: list[Any]) -> None:
    run("/some/models/qwen/")
    run("/some/models/qwen", "--alias", "mine")
    assert [call[1] for call in served] == ["qwen", "mine"]


def test_beyond_localhost_without_a_key_there_is_a_warning(served: list[Any]) -> None:
    assert "WARNING" in run("--host", "0.0.0.0").stderr
    assert run("--host", "0.0.0.0", "--api-key", "k").stderr == ""


def test_keys_from_the_command_line_and_a_file(served: list[Any], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("two\nthree\n")
    run("--api-key", "one", "--api-key-file", str(tmp_path / "keys"))
    assert served[0][0].keys == ("one", "two", "three")


@pytest.mark.parametrize(
    "arguments",
    [["--port", "70000"], ["--api-key", ""], ["--prefix-cache", "x"], ["--api-key-file", "none"]],
)
def test_wrong_options_are_refused(served: list[Any], arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert result.stderr.startswith("flashmoe: error: ")
    assert served == []


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "flashmoe.cli.serve.find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    result = run()
    assert result.exit_code == 2
    assert "flashmoe[serve]" in result.stderr
