"""What is announced about memory, held against what is taken."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe import _native, loading, planning
from flashmoe.errors import ChecksumError, MemoryBudgetError, StorageError, UsageError
from flashmoe.experts.memory import SystemMemory
from flashmoe.layers.state import KvCache, LatentCache, LayerState
from flashmoe.models.registry import load_family
from flashmoe.planning import Plan, make_plan
from flashmoe.settings import DEFAULT_READERS, EngineSettings
from flashmoe.sizing import floor_slots, scratch_bytes
from flashmoe.store.info import pack_info
from flashmoe.store.packed import PackedModel
from tests.support.cgroup import MemoryGroup
from tests.support.packs import TinyPacks, some_ids
from tests.support.synthetic import write_synthetic

MIB = 1 << 20


# The sum.


def test_below_the_floor_the_sum_is_shown(tiny: Path) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        flashmoe.load(tiny, ram=10 * MIB)
    text = str(caught.value)
    assert text.startswith("the model does not fit the memory limit; expected at most 10.0 MiB")
    parts = (
        "resident weights",
        "state of 256 tokens",
        "scratch of 64-token chunks",
        "interpreter",
    )
    for name in (*parts, "expert cache (12 slots of", "total", "limit: --ram"):
        assert name in text
    lines = dict(re.findall(r"^  (.*?)  +([\d.]+ \w+)$", text, re.MULTILINE))
    untied = "lm_head" in PackedModel.open(tiny).manifest.tensors
    assert ("rows of embed_tokens" in lines) == untied
    assert len(lines) == 7 + untied
    total = lines.pop("total")
    assert f"got {total}" in text


def test_at_the_floor_it_runs_and_one_byte_below_not(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = SystemMemory(physical=8 << 30, available=8 << 30, process=50 * MIB, cgroup=None)
    monkeypatch.setattr(planning, "read_system_memory", lambda: system)
    pack = PackedModel.open(tiny)
    family = load_family(pack.manifest.family)

    def plan(ram: int) -> Plan:
        return make_plan(pack, family, EngineSettings(ram=ram))

    fitting = plan(8 << 30)
    assert fitting.costs.chunk(4096, fitting.budget.slots) == 4096
    assert fitting.budget.slots == 16 * len(pack.manifest.layers)
    floor = smallest(plan, 8 << 30)
    at_floor = plan(floor)
    assert at_floor.budget.total == floor
    assert at_floor.costs.chunk(4096, at_floor.budget.slots) == 64
    assert at_floor.budget.slots == floor_slots(4, DEFAULT_READERS)


def smallest(plan: Callable[[int], Plan], high: int) -> int:
    """The least limit, to the byte, for which there is a plan."""
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan(middle)
            high = middle
        except MemoryBudgetError:
            low = middle
    return high


@pytest.mark.parametrize("tokens", [1, 256])
@pytest.mark.parametrize("dense", ["q8", "bf16"])
def test_state_bytes_are_those_of_the_arrays(
    tiny_packs: TinyPacks, family: str, dense: str, tokens: int
) -> None:
    with flashmoe.load(tiny_packs.get(family, "q4", dense), context_length=tokens) as model:
        layers = model.session().engine.new_state().layers
        assert model.stats.kv_bytes == sum(a.nbytes for layer in layers for a in arrays_of(layer))


def arrays_of(layer: LayerState) -> tuple[np.ndarray, ...]:
    if isinstance(layer, KvCache):
        return (layer.k, layer.v)
    return (layer.rows,) if isinstance(layer, LatentCache) else (layer.conv, layer.s)


@pytest.mark.parametrize("chunk", [1, 64, 200])
def test_scratch_stays_within_its_estimate(tiny: Path, chunk: int) -> None:
    with flashmoe.load(tiny) as model:
        specs = load_family(model.family).weights(model.config)
        estimate = scratch_bytes(model.config, specs, chunk)
        session = model.session()
        session.feed_all(some_ids(chunk), chunk=chunk)
        session.feed([1])
        hidden = 4 * chunk * model.config.hidden_size  # the residual is not from the scratch block
        assert session.engine.ops.scratch_bytes + hidden <= estimate  # type: ignore[attr-defined]


def test_settings_from_the_environment(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RAM": "60G", "CACHE": "0", "THREADS": "2", "ISA": "scalar"}
    for name, value in values.items():
        monkeypatch.setenv(f"FLASHMOE_{name}", value)
    with flashmoe.load(tiny) as model:
        assert (model.stats.threads, model.stats.isa, model.stats.cache_slots) == (2, "scalar", 12)
    with flashmoe.load(tiny, threads=1, cache="all") as model:
        experts = 16 * len(PackedModel.open(tiny).manifest.layers)
        assert (model.stats.threads, model.stats.cache_slots) == (1, experts)
    monkeypatch.setenv("FLASHMOE_RAM", "10M")
    with pytest.raises(MemoryBudgetError):
        flashmoe.load(tiny)
    for bad in ("two", "²", "-1"):
        monkeypatch.setenv("FLASHMOE_THREADS", bad)
        with pytest.raises(UsageError, match="FLASHMOE_THREADS: not a number"):
            flashmoe.load(tiny)


# What is taken.

_REPORT = """
import hashlib, json, sys, flashmoe
model = flashmoe.load(sys.argv[1], context_length=600, ram=sys.argv[2] or None)
session = model.session()
logits = session.feed([(7 * i) % 1000 for i in range(520)])
for _ in range(10):
    logits = session.step(int(logits.argmax()))
stats = model.stats
print(json.dumps({
    "digest": hashlib.sha256(logits.tobytes()).hexdigest(),
    "peak_rss": stats.peak_rss,
    "slots": stats.cache_slots,
    "misses": stats.cache_misses,
}))
"""


def report(pack: Path, ram: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _REPORT, str(pack), ram]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random experts of 110 MB: more than the tests allow in memory."""
    pack = tmp_path_factory.mktemp("synthetic") / "pack"
    write_synthetic(pack)
    yield pack
    for file in pack.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def unlimited(synthetic: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(report(synthetic).stdout)
    assert result["slots"] == 4 * 64
    return result


@pytest.mark.parametrize("ram_mib", [130, 180])
def test_peak_memory_stays_under_ram(
    synthetic: Path, unlimited: dict[str, Any], ram_mib: int
) -> None:
    result = json.loads(report(synthetic, f"{ram_mib}M").stdout)
    assert result["slots"] < unlimited["slots"]
    assert result["peak_rss"] <= ram_mib * MIB
    assert result["digest"] == unlimited["digest"]


def test_a_cgroup_limit_is_kept(synthetic: Path, unlimited: dict[str, Any]) -> None:
    """A real one: above it the kernel kills."""
    with MemoryGroup(140 * MIB) as group:
        done = report(synthetic, preexec_fn=group.enter)
        assert done.returncode != -signal.SIGKILL
        result = json.loads(done.stdout)
        assert group.kills() == 0
    assert result["slots"] < unlimited["slots"]
    assert result["misses"] > unlimited["misses"]
    assert result["digest"] == unlimited["digest"]


def test_a_cgroup_limit_below_the_floor_is_named(synthetic: Path) -> None:
    with MemoryGroup(90 * MIB) as group:
        done = report(synthetic, preexec_fn=group.enter)
    assert done.returncode == 1
    assert "MemoryBudgetError: the model does not fit the memory limit" in done.stderr
    assert "90.0 MiB (cgroup limit /sys/fs/cgroup" in done.stderr


def test_random_weights_use_all_experts(synthetic: Path) -> None:
    """Else the tests above would not stream."""
    with flashmoe.load(synthetic, context_length=64) as model:
        model.logits(np.arange(64))
        assert model.stats.cache_misses > 0.6 * 4 * 64


# What stays in the file, what is locked.


@pytest.fixture
def small_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests is larger than the limits of the tests."""
    system = SystemMemory(physical=8 << 30, available=8 << 30, process=50 * MIB, cgroup=None)
    monkeypatch.setattr(planning, "read_system_memory", lambda: system)


@pytest.mark.usefixtures("small_process")
def test_the_embedding_is_read_by_row_where_memory_is_short(
    synthetic: Path,
) -> None:
    with flashmoe.load(synthetic, context_length=64) as model:
        held = model.stats
        expected = model.logits(np.arange(64))
    assert not held.embedding_on_disk
    with flashmoe.load(synthetic, context_length=64, ram="180M") as model:
        stats = model.stats
        assert stats.embedding_on_disk
        assert (
            held.resident_bytes - stats.resident_bytes
            == pack_info(PackedModel.open(synthetic), 8).row_bytes
        )
        assert np.array_equal(model.logits(np.arange(64)), expected)
        assert np.array_equal(model.session().feed([999]), model.logits([999])[0])


@pytest.mark.usefixtures("small_process")
def test_a_damaged_embedding_is_found_while_loading(synthetic: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(synthetic, pack, copy_function=os.link)
    damaged = pack / "resident.safetensors"
    data = bytearray(damaged.read_bytes())
    manifest = PackedModel.open(synthetic).manifest
    data[len(manifest.resident_header()) + manifest.tensor_offsets()["embed_tokens"] + 99] ^= 1
    damaged.unlink()
    damaged.write_bytes(data)
    with pytest.raises(ChecksumError, match="embed_tokens"):
        flashmoe.load(pack, context_length=64, ram="180M")


@pytest.mark.usefixtures("small_process")
def test_an_embedding_cut_short_while_in_use_is_typed(synthetic: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(synthetic, pack, copy_function=os.link)
    file = pack / "resident.safetensors"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)
    with flashmoe.load(pack, context_length=64, ram="180M") as model:
        os.truncate(file, 4096)
        with pytest.raises(StorageError, match=r"resident.safetensors: file ends too early"):
            model.logits([5])


def test_locked_weights(synthetic: Path) -> None:
    with flashmoe.load(synthetic, context_length=64, lock=True) as model:
        status = Path("/proc/self/status").read_text()
        locked = re.search(r"VmLck:\s+(\d+) kB", status)
        assert locked is not None
        assert int(locked[1]) * 1024 >= model.stats.resident_bytes


_LOCKED = """
import os, resource, sys, flashmoe
from flashmoe.errors import MemoryBudgetError
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
flashmoe.load(sys.argv[1], context_length=64).close()  # imports what only root may read
if os.geteuid() == 0:  # root may lock whatever the limit says
    os.seteuid(65534)
try:
    flashmoe.load(sys.argv[1], context_length=64, lock=True)
except MemoryBudgetError as error:
    print(error)
"""


def test_a_real_limit_on_locked_memory_is_named(tiny: Path) -> None:
    for folder in tiny.parents:
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
    command = [sys.executable, "-c", _LOCKED, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "refuses to lock the resident weights" in done.stdout
    assert "64.0 KiB" in done.stdout


def test_a_lock_that_is_refused_says_what_to_do(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(arena: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    class Refusing(_native.Arena):
        lock = refuse

    monkeypatch.setattr(_native, "Arena", Refusing)
    monkeypatch.setattr(loading, "locked_limit", lambda: 64 << 10)
    with pytest.raises(MemoryBudgetError, match=r"lock.*64.0 KiB.*ulimit -l"):
        flashmoe.load(tiny, lock=True)
