"""Calibration runs: what they record, that they go on where they stopped, and their refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.demo import demo_model_path
from flashmoe.errors import CheckpointError, UsageError
from flashmoe.evals.calibrate import calibrate, read_windows
from flashmoe.store.calibration import Calibration
from flashmoe.store.calibration_journal import CalibrationJournal


@pytest.fixture(scope="module")
def model() -> Iterator[flashmoe.Model]:
    with flashmoe.load(demo_model_path(), prefetch="off") as loaded:
        yield loaded


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The rain had stopped, and the river was high. " * 120)
    return path


class Stop(Exception):
    pass


def stop_at(words: str) -> object:
    def progress(told: str) -> None:
        if told.startswith(words):
            raise Stop

    return progress


def test_it_records_what_each_layer_was_given(
    model: flashmoe.Model, text: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    count = calibrate(model, [text], tmp_path / "c", tokens=600, progress=told.append)
    assert (count, told) == (600, ["ran 1 of 2 windows", "ran 2 of 2 windows"])
    found = Calibration(tmp_path / "c")
    assert "600 tokens: text.txt sha256 " in found.record
    seen: list[np.ndarray] = []
    with model.watch_experts(lambda layer, ids, x, w: seen.append(ids) if layer == 7 else None):
        for window in read_windows(model, text, 600):
            model.session().feed(window)
    inputs = found.layer(7, 256, 64)
    assert np.array_equal(inputs.ids, np.concatenate(seen))
    assert inputs.x.shape == (600, 256)
    assert not list(tmp_path.glob("c.*"))


@pytest.mark.parametrize(("where", "next_"), [("wrote 40", "wrote 80"), ("ran 3", "ran 3")])
def test_interrupted_it_goes_on_to_the_same_bytes(
    model: flashmoe.Model,
    text: Path,
    tmp_path: Path,
    where: str,
    next_: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flashmoe.evals.calibrate.WINDOW", 40)
    sizes = {"tokens": 100, "sample": 90, "sync_seconds": 0.0}
    calibrate(model, [text], tmp_path / "whole", **sizes)
    with pytest.raises(Stop):
        calibrate(model, [text], tmp_path / "cut", progress=stop_at(where), **sizes)
    assert not (tmp_path / "cut").exists()
    told: list[str] = []
    calibrate(model, [text], tmp_path / "cut", progress=told.append, **sizes)
    assert told[0].startswith(next_)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_unfinished_one_of_other_texts_is_not_gone_on_with(
    model: flashmoe.Model, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        calibrate(model, [text], tmp_path / "c", tokens=600, progress=stop_at("ran 1"))
    with pytest.raises(UsageError, match="other texts or options") as caught:
        calibrate(model, [text], tmp_path / "c", tokens=500)
    assert "start afresh" in str(caught.value)


def test_chats_are_windows_of_their_own(model: flashmoe.Model, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    lines = [{"messages": [{"role": "user", "content": word}]} for word in ("Hello", "What?")]
    chats.write_text("\n".join(map(json.dumps, lines)) + "\n")
    windows = read_windows(model, chats, 1000)
    assert len(windows) == 2
    assert "Hello" in model.tokenizer.decode(windows[0])
    assert [len(w) for w in read_windows(model, chats, len(windows[0]) + 3)][1] == 3


def test_what_is_no_text_is_refused(model: flashmoe.Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to calibrate on"):
        calibrate(model, [], tmp_path / "c")
    with pytest.raises(UsageError, match="cannot read the text"):
        calibrate(model, [tmp_path / "none.txt"], tmp_path / "c")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read the text"):
        calibrate(model, [tmp_path / "bytes.txt"], tmp_path / "c")
    for line in ("nonsense", "[1]", '{"tools": []}'):
        (tmp_path / "chats.jsonl").write_text(line)
        with pytest.raises(UsageError, match="not a chat"):
            calibrate(model, [tmp_path / "chats.jsonl"], tmp_path / "c")
    assert not list(tmp_path.glob("c*.partial"))


def test_a_journal_drops_a_torn_line_and_refuses_garbage(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with CalibrationJournal(path, "key") as journal:
        journal.add_document([1, 2])
        journal.set_ran(3)
        with pytest.raises(UsageError, match="another calibration is running"):
            CalibrationJournal(path, "key")
    with path.open("a") as file:
        file.write('{"ran": 9')
    with CalibrationJournal(path, "key") as journal:
        assert (journal.wrote, journal.ran) == ([[1, 2]], 3)
    for line in ("[]", "x", '{"ran": -1}', '{"wrote": ["a"]}'):
        path.write_text(f'{{"key": "key"}}\n{line}\n')
        with pytest.raises(CheckpointError):
            CalibrationJournal(path, "key")
