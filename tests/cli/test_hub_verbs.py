"""pull, list, show, rm, plan and doctor as they are typed, beside a stand-in of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from flashmoe import library
from flashmoe.cli import make_app, models, terminal
from flashmoe.doctor import checks
from flashmoe.forecast import rates
from flashmoe.hub.repo import Hub
from flashmoe.hub.transport import Retry, Transport
from flashmoe.store.format import MANIFEST
from tests.support.hub_server import COMMIT, REPO, Fault, StandIn, running_hub
from tests.support.tiny_checkpoints import write_checkpoint

NAME = "tiny-moe"


def flashmoe(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(make_app(), [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published") / NAME, "qwen3_moe")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models directory, no recorded lines, a machine of fixed speed."""
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rates, "_measured_disk", lambda pack, here, place: 2e9)
    monkeypatch.setattr(rates, "memory_rate", lambda threads, seconds: 4e10)
    return tmp_path / "home"


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """What the verbs find at HF_ENDPOINT; failures are tried again at once."""
    with running_hub(published) as stand_in:

        def made() -> Hub:
            return Hub(Transport(stand_in.endpoint, None, Retry(3, 0.01, 1.0)), tmp_path / "cache")

        monkeypatch.setattr(Hub, "from_environment", made)
        yield stand_in


@pytest.fixture
def pulled(hub: StandIn) -> str:
    """The name of a pulled pack."""
    result = flashmoe("pull", REPO, "--pack", "--quiet", "--group", 32)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    return NAME


@pytest.fixture(params=[40, 80])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The width of a terminal that stdout is taken for."""
    width: int = request.param
    for module in ("list", "show", "plan", "doctor"):
        __import__(f"flashmoe.cli.{module}")
    monkeypatch.setattr(terminal, "printed_columns", lambda: width)
    return width


def widest(text: str, but: str = "\0") -> int:
    return max(len(line) for line in text.splitlines() if but not in line)


def test_pull_says_where_the_model_is_and_how_to_go_on(hub: StandIn, home: Path) -> None:
    result = flashmoe("pull", REPO)
    assert result.exit_code == 0
    assert result.stdout == f"{home / 'checkpoints' / NAME}\n"
    assert f"flashmoe run {NAME}" in result.stderr
    assert f"flashmoe plan {NAME}" in result.stderr


def test_a_pulled_pack_needs_no_plan(hub: StandIn, home: Path) -> None:
    result = flashmoe("pull", REPO, "--pack", "--name", "mine", "--group", 32)
    assert result.stdout == f"{home / 'models' / 'mine'}\n"
    assert "flashmoe run mine" in result.stderr
    assert "plan" not in result.stderr


def test_pull_elsewhere(hub: StandIn, tmp_path: Path) -> None:
    assert flashmoe("pull", REPO, "--to", tmp_path / "there", "--quiet").exit_code == 0
    assert (tmp_path / "there/config.json").exists()
    assert json.loads(flashmoe("list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("no/such",), "no/such", 1),
        ((f"{REPO}@v9",), "v9", 1),
        (("just-a-name",), "OWNER/NAME", 2),
        ((REPO, "--pack", "--files", "*"), "--files: does not go with --pack", 2),
        ((REPO, "--name", "../up"), "not a model's name", 2),
        ((REPO, "--experts", "q7", "--pack"), "--experts", 2),
        ((REPO, "--connections", 0), "connections", 2),
    ],
)
def test_what_cannot_be_pulled(
    hub: StandIn, home: Path, arguments: tuple[object, ...], message: str, code: int
) -> None:
    result = flashmoe("pull", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupted_pull_is_listed_and_goes_on(hub: StandIn) -> None:
    hub.faults.append(Fault("model.safetensors", status=503, times=99))
    assert flashmoe("pull", REPO, "--quiet").exit_code == 1
    (entry,) = json.loads(flashmoe("list", "--json").stdout)
    assert (entry["name"], entry["kind"]) == (NAME, "unfinished")
    assert "unfinished" in flashmoe("show", NAME).stdout
    hub.faults.clear()
    assert flashmoe("pull", REPO, "--quiet").exit_code == 0
    (entry,) = json.loads(flashmoe("list", "--json").stdout)
    assert entry["kind"] == "checkpoint"


def test_list_of_nothing(home: Path) -> None:
    result = flashmoe("list")
    assert result.exit_code == 0
    assert "flashmoe pull OWNER/NAME --pack" in result.stdout
    assert flashmoe("list", "--json").stdout == "[]\n"


def test_list_and_show(pulled: str, home: Path) -> None:
    (line,) = flashmoe("list").stdout.splitlines()
    assert line.split()[:2] == [NAME, "pack"]
    shown = flashmoe("show", pulled).stdout
    assert f"from {REPO}@main, commit {COMMIT[:12]}" in shown
    assert "packed: experts q4, dense q8, group 32" in shown
    (entry,) = json.loads(flashmoe("show", pulled, "--json").stdout)
    assert (entry["kind"], entry["path"]) == ("pack", str(home / "models" / NAME))
    assert entry["origin"]["commit"] == COMMIT


def test_a_published_pack_is_listed_as_one(pulled: str, home: Path) -> None:
    assert library._MANIFEST == MANIFEST
    (home / "checkpoints").mkdir(exist_ok=True)
    (home / "models" / NAME).rename(home / "checkpoints" / "published")
    kinds = {one["name"]: one["kind"] for one in json.loads(flashmoe("list", "--json").stdout)}
    assert kinds == {"published": "pack"}


def test_what_is_not_there(pulled: str) -> None:
    for verb in ("show", "rm"):
        result = flashmoe(verb, "absent")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"expected {NAME}, got absent" in result.stderr
    result = flashmoe("rm", pulled, "--kind", "checkpoint", "--yes")
    assert result.exit_code == 2
    assert "none of this kind" in result.stderr
    result = flashmoe("rm", pulled, "--kind", "packs", "--yes")
    assert result.exit_code == 2
    assert (
        "--kind: unknown kind; expected pack | checkpoint | unfinished, got packs" in result.stderr
    )


def test_a_damaged_record_of_the_origin_says_what_to_do(pulled: str, home: Path) -> None:
    record = home / "models" / f"{NAME}.origin.json"
    record.write_text("")
    result = flashmoe("list")
    assert result.exit_code == 1
    assert f"{record}: is not valid JSON" in result.stderr
    assert "Delete this file" in result.stderr
    record.unlink()
    assert NAME in flashmoe("list").stdout


def test_rm_asks_unless_told_not_to(
    pulled: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = home / "models" / NAME
    result = flashmoe("rm", pulled)
    assert result.exit_code == 2
    assert "Add --yes" in result.stderr
    assert place.exists()
    result = flashmoe("rm", pulled, "--yes")
    assert result.exit_code == 0
    assert str(place) in result.stdout
    assert not place.exists()
    assert flashmoe("list", "--json").stdout == "[]\n"


@pytest.mark.parametrize("verb", ["info", "verify", "plan"])
def test_verbs_take_pulled_names(pulled: str, verb: str) -> None:
    result = flashmoe(verb, pulled)
    assert result.exit_code == 0, result.stderr
    assert result.stdout


def test_bench_takes_pulled_names(pulled: str, tmp_path: Path) -> None:
    result = flashmoe(
        "bench", "disk", pulled, "--depth", 1, "--block", 4096, "--seconds", 0.01, "--no-record"
    )
    assert result.exit_code == 0, result.stderr


def test_names_become_places(pulled: str, home: Path, tmp_path: Path) -> None:
    place, other = home / "models" / NAME, tmp_path / "elsewhere"
    assert models.found(Path(pulled)) == place
    assert models.found_all([Path(pulled), other]) == [place, other]
    assert (models.found_or_none(None), models.found_or_none(other)) == (None, other)


@pytest.mark.parametrize(
    "verb", ["bench decode", "bench prefill", "bench startup", "bench concurrency", "bench card",
             "bench disk", "eval model", "eval knobs", "eval tasks", "eval compare", "calibrate",
             "info", "verify"],
)  # fmt: skip
def test_every_verb_that_opens_a_model_looks_for_pulled_ones(verb: str) -> None:
    app: Any = typer.main.get_command(make_app())
    for name in verb.split():
        app = app.get_command(click.Context(app), name)
    assert next(one for one in app.params if one.param_type_name == "argument").callback


def test_a_name_that_is_none_is_the_verbs_own_error() -> None:
    result = flashmoe("info", "absent")
    assert result.exit_code != 0
    assert "absent" in result.stderr


def test_plan_before_and_after_the_download(hub: StandIn, pulled: str) -> None:
    before = flashmoe("plan", REPO, "--group", 32)
    after = flashmoe("plan", pulled)
    assert (before.exit_code, after.exit_code) == (0, 0)
    assert before.stdout.splitlines()[2:5] == after.stdout.splitlines()[2:5]
    assert "in place: about" in before.stdout
    assert "in place" not in after.stdout
    assert before.stdout.splitlines()[-1].startswith("biggest win: ")


def test_plan_as_json(pulled: str) -> None:
    found = json.loads(flashmoe("plan", pulled, "--rates", "assume", "--json").stdout)
    assert (found["kind"], found["device"], found["verdict"]) == ("pack", "cpu", "good")
    origins = {one["name"]: one["origin"] for one in found["figures"]}
    assert (origins["disk"], origins["on disk"]) == ("assumed", "header")


def test_plan_for_a_card_that_is_not_here(pulled: str) -> None:
    result = flashmoe("plan", pulled, "--card", "RTX 4090", "--vram", "24G")
    assert result.exit_code == 0, result.stderr
    assert "device: cuda, RTX 4090" in result.stdout
    assert "assumed, data sheet of RTX 4090" in result.stdout


def test_plan_replays_a_trace(pulled: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"tok": 1, "layers": [[0, 1], [2, 3]]}\n' * 3)
    result = flashmoe("plan", pulled, "--trace", tmp_path / "t.jsonl")
    assert "replayed, t.jsonl" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent",), "no such model"),
        ((NAME, "--rates", "guess"), "--rates"),
        ((NAME, "--device", "tpu"), "unknown device"),
        ((NAME, "--device", "cuda"), "no card is here"),
        ((NAME, "--card", "RTX 4090", "--device", "cpu"), "--card: does not go with --device cpu"),
        (("tell me more " * 30,), "cannot be read; got File name too long"),
        ((NAME, "--ram", "lots"), "--ram"),
        ((NAME, "--ctx", 10**9), "context_length"),
        ((NAME, "--trace", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_what_cannot_be_planned(pulled: str, arguments: tuple[object, ...], message: str) -> None:
    result = flashmoe("plan", *arguments)
    assert result.exit_code != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_plan_of_what_cannot_run_exits_with_2(pulled: str) -> None:
    result = flashmoe("plan", pulled, "--ram", "1M")
    assert result.exit_code == 2
    assert "impossible: needs" in result.stdout


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    result = flashmoe("doctor", "--no-probe")
    assert result.exit_code == 0
    names = [line.split()[1] for line in result.stdout.splitlines() if line[:1] != " "]
    assert names[0] == "cpu:"
    assert "versions:" in names
    found = json.loads(flashmoe("doctor", "--no-probe", "--json").stdout)
    assert {one["status"] for one in found} <= {"ok", "warn"}
    assert "disk rate" not in {one["name"] for one in found}


def test_doctor_of_a_disk_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashmoe.errors import StorageError

    def refuse(place: Path, block: int) -> tuple[bool, float]:
        raise StorageError("cannot be written", where=place)

    monkeypatch.setattr(checks, "probe_disk", refuse)
    result = flashmoe("doctor")
    assert result.exit_code == 1
    assert "fail  disk rate" in result.stdout


def test_lines_fit_the_terminal(pulled: str, hub: StandIn, home: Path, columns: int) -> None:
    """Paths alone may be longer: they have to be copied in one piece."""
    commands: list[tuple[object, ...]] = [
        ("list",),
        ("show", pulled),
        ("plan", pulled),
        ("plan", REPO, "--group", 32),
        ("plan", pulled, "--card", "RTX 4090", "--vram", "24G"),
        ("doctor", "--no-probe"),
    ]
    for command in commands:
        result = flashmoe(*command)
        assert widest(result.stdout, but="/") < columns, result.stdout


def test_a_long_name_has_a_line_of_its_own(
    pulled: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "Some-Model-235B-A22B-Instruct"
    (home / "models" / NAME).rename(home / "models" / long)
    monkeypatch.setattr(terminal, "printed_columns", lambda: 40)
    name, rest = flashmoe("list").stdout.splitlines()
    assert name == long
    assert rest.split()[0] == "pack"
