from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import flashmoe.api
from flashmoe.cli import make_app
from flashmoe.errors import UsageError

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
    [
        ["--port", "70000"],
        ["--api-key", ""],
        ["--prefix-cache", "x"],
        ["--prefix-disk", "lots"],
        ["--api-key-file", "none"],
    ],
)
def test_wrong_options_are_refused(served: list[Any], arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert result.stderr.startswith("flashmoe: error: ")
    assert served == []


def test_a_queue_below_nothing_is_refused(served: list[Any]) -> None:
    assert (run("--queue", "-1").exit_code, served) == (2, [])


def test_a_file_of_keys_without_one_opens_no_server(served: list[Any], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n \n")
    result = run("--api-key-file", str(tmp_path / "keys"))
    assert (result.exit_code, served) == (2, [])
    assert "keys: no key in it; expected a key per line" in result.stderr


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "flashmoe.cli.serve.find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    result = run()
    assert result.exit_code == 2
    assert "flashmoe[serve]" in result.stderr


def test_a_device_that_is_not_there_is_refused(served: list[Any]) -> None:
    run("--device", "gpu")
    *_, load, _ = served[0]
    with pytest.raises(UsageError, match="unknown device"):
        load()


def test_a_card_serves_one_answer_at_a_time(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []

    def load(path: str | None, **engine: Any) -> Any:
        opened.append(engine)
        raise UsageError("no card here", where="test")

    monkeypatch.setattr(flashmoe.api, "device_for", lambda path, wanted: (wanted, "asked for"))
    monkeypatch.setattr("flashmoe.load", load, raising=False)
    for arguments in (
        ["--device", "cuda", "--vram", "2G"],
        ["--device", "cpu"],
        ["--parallel", "2", "--device", "cuda"],
    ):
        run(*arguments)
        with pytest.raises(UsageError):
            served[-1][2]()
    assert [engine["parallel"] for engine in opened] == [1, 4, 2]
    assert opened[0]["vram"] == "2G"
