"""Recording: it changes no bit, costs nothing when off, and whatever ends it leaves a prefix."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe import files
from flashmoe.bench.choosing import ranked
from flashmoe.bench.recorded import Recorded, read_recorded
from flashmoe.errors import StorageError, UsageError
from flashmoe.experts.trace_format import NO_EXPERT
from flashmoe.generate.engine import Engine
from flashmoe.generate.hidden import HiddenStates
from flashmoe.generate.sweep import Sweep, can_sweep
from flashmoe.layers.moe import SparseMoe
from flashmoe.layers.traced import TracedMoe
from tests.support.packs import TinyPacks, assert_same_bits, some_ids, transcript
from tests.support.serving import ask, run_all, scheduler_of
from tests.support.tolerances import TRACE_SUM_ATOL

PROMPT, STEPS = some_ids(70), 6


def recorded_run(pack: Path, trace: Path, **settings: Any) -> Recorded:
    with flashmoe.load(pack, trace=trace, **settings) as model:
        transcript(model, PROMPT, STEPS)
    return read_recorded(trace)


def tokens_by_layer(recorded: Recorded) -> dict[int, int]:
    counts = dict.fromkeys(recorded.header.layers, 0)
    for layer in recorded.layers:
        counts[layer.layer] += sum(len(rows.ids) for rows in layer.rows)
    return counts


@pytest.fixture(params=["qwen3_moe", "qwen3_5_moe", "gpt_oss", "deepseek_v3", "gemma4"])
def pack(request: pytest.FixtureRequest, tiny_packs: TinyPacks) -> Path:
    return tiny_packs.get(request.param)


@pytest.mark.parametrize("settings", [{}, {"cache": "25%", "prefetch": "on"}])
def test_no_bit_changes(pack: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    with (
        flashmoe.load(pack, **settings) as plain,
        flashmoe.load(pack, trace=tmp_path / "trace", **settings) as traced,
    ):
        assert_same_bits(transcript(traced, PROMPT, STEPS), transcript(plain, PROMPT, STEPS))
        assert traced.stats.cache_misses == plain.stats.cache_misses
        assert traced.stats.cache_hits == plain.stats.cache_hits
        assert traced.stats.phase_seconds["trace"] > 0
        assert "trace" not in plain.stats.phase_seconds


def test_every_layer_and_token_is_recorded(pack: Path, tmp_path: Path) -> None:
    recorded = recorded_run(pack, tmp_path / "trace")
    assert set(tokens_by_layer(recorded).values()) == {len(PROMPT) + STEPS}
    assert [facts.decodes for facts in recorded.passes.values()] == [False] + [True] * STEPS
    assert (recorded.cut_bytes, recorded.last is not None) == (0, True)
    with flashmoe.load(pack) as model:
        header = recorded.header
        assert (header.family, header.lossy) == (model.family, "")
        assert header.num_experts_per_tok == model.stats.experts_per_token
        assert header.identity in {part for part in model._loaded.results if part}


def test_the_ids_are_the_best_by_the_scores(pack: Path, tmp_path: Path) -> None:
    recorded = recorded_run(pack, tmp_path / "trace")
    header = recorded.header
    for layer in recorded.layers:
        for ids, scores in layer.rows:
            best = ranked(scores, layer.layer, header, header.num_experts_per_tok)
            np.testing.assert_array_equal(ids, best)
            if header.router.kind == "softmax":
                np.testing.assert_allclose(scores.sum(axis=1), 1, atol=TRACE_SUM_ATOL)


def test_rules_leave_gaps(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    recorded = recorded_run(tiny_packs.get("qwen3_moe"), tmp_path / "trace", routing="k=3,mass=0.6")
    assert recorded.header.lossy == "k=3,mass=0.6"
    assert recorded.header.num_experts_per_tok == 4
    widths = {rows.ids.shape[1] for layer in recorded.layers for rows in layer.rows}
    assert max(widths) == 3
    assert any((rows.ids == NO_EXPERT).any() for layer in recorded.layers for rows in layer.rows)


def test_when_off_nothing_is_there(tiny_packs: TinyPacks) -> None:
    with flashmoe.load(tiny_packs.get("qwen3_moe")) as model:
        engine = model.session().engine
        assert {type(layer.mlp) for layer in engine.decoder.layers} == {SparseMoe}
        assert engine.watch is Engine.__dataclass_fields__["watch"].default


def test_sequences_that_share_passes(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    """Passes nest: an answer goes on between two layers of a prompt."""
    path = tmp_path / "trace"
    with flashmoe.load(tiny_packs.get("qwen3_moe"), parallel=3, trace=path) as model:
        requests = [ask(some_ids(n, n), tokens=9) for n in (3, 40, 130)]
        told = run_all(scheduler_of(model, 3, gap=0.0), requests, apart=1)
    assert {len(one.ids) for one in told} == {9}
    recorded = read_recorded(path)
    assert set(tokens_by_layer(recorded).values()) == {3 + 40 + 130 + 3 * 8}
    order = [layer.facts.number for layer in recorded.layers]
    assert order != sorted(order), "no pass ran within another"


def test_windows_that_pass_layer_by_layer(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    path, windows = tmp_path / "trace", np.array([some_ids(20, n) for n in range(3)], np.int32)
    with flashmoe.load(tiny_packs.get("qwen3_moe"), trace=path) as model:
        engine = model.session().engine
        assert can_sweep(engine)
        hidden = len(engine.decoder.head.norm)
        with HiddenStates(tmp_path / "states", windows.size, hidden, "key") as store:
            Sweep(engine, windows).run(store)
    assert set(tokens_by_layer(read_recorded(path)).values()) == {60}


def test_a_file_that_exists_is_refused(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("mine")
    with pytest.raises(UsageError, match="there is a file of this name"):
        flashmoe.load(tiny_packs.get("qwen3_moe"), trace=tmp_path / "trace")
    assert (tmp_path / "trace").read_text() == "mine"
    with pytest.raises(StorageError, match="cannot create the trace"):
        flashmoe.load(tiny_packs.get("qwen3_moe"), trace=tmp_path / "no" / "trace")


class SmallDisk:
    """os.pwrite on a disk with so much room left; what fits is written, as by the kernel."""

    def __init__(self, room: int) -> None:
        self.room = room

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.pwrite(fd, data[: self.room], offset)
        self.room -= written
        return written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    disk = SmallDisk(10_000)

    class Os:
        pwrite = staticmethod(disk.pwrite)

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    monkeypatch.setattr(files, "os", Os())
    yield disk


def test_a_full_disk(tiny_packs: TinyPacks, tmp_path: Path, disk: SmallDisk) -> None:
    """The pass fails with a typed error, the file keeps what was whole; once there is room again
    other sequences go on."""
    path = tmp_path / "trace"
    with flashmoe.load(tiny_packs.get("qwen3_moe"), trace=path) as model:
        session = model.session()
        with pytest.raises(StorageError, match="No space left"):
            for id in some_ids(1000):
                session.step(id)
        whole = read_recorded(path)
        assert (whole.cut_bytes, len(whole.layers) > 0) == (0, True)
        disk.room = 1 << 30
        model.session().step(1)
    later = read_recorded(path)
    assert len(later.layers) == len(whole.layers) + len(later.header.layers)


def test_kill_9(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    code = (
        f"import flashmoe; model = flashmoe.load({str(tiny_packs.get('qwen3_moe'))!r},"
        f" trace={str(path)!r}); session = model.session()\n"
        "while True: session.step(1); print(session.position, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        seen = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
    recorded = read_recorded(path)
    assert recorded.last is None
    assert min(tokens_by_layer(recorded).values()) >= seen[-1]


def test_the_router_is_asked_as_it_was(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    with flashmoe.load(tiny_packs.get("qwen3_moe"), trace=tmp_path / "trace") as model:
        kinds = {type(layer.mlp) for layer in model.session().engine.decoder.layers}
    assert kinds == {TracedMoe}
