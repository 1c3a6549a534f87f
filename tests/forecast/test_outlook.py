"""The outlook of a pack, of its checkpoint, of the same on the hub; on a CPU and on cards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from flashmoe.errors import UsageError
from flashmoe.forecast import device
from flashmoe.forecast import outlook as module
from flashmoe.forecast.figures import Outlook
from flashmoe.forecast.model import Rates
from flashmoe.forecast.outlook import Basis, outlook
from flashmoe.forecast.rates import Known, MachineRates
from flashmoe.hub.repo import Hub
from flashmoe.hub.transport import Transport
from flashmoe.ops.devices import Gpu
from flashmoe.settings import EngineSettings
from flashmoe.store.pack import pack_checkpoint
from tests.store.support import OPTIONS
from tests.support.hub_server import REPO, running_hub
from tests.support.packs import TinyPacks
from tests.support.tiny_checkpoints import write_checkpoint

RATES = Rates(1.7e9, 40e9, 2)
CARD = Gpu("NVIDIA GeForce RTX 4090", 24 << 30, "580.1", 23 << 30)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk, memory = Known(RATES.disk, "measured"), Known(RATES.memory, "measured")
    known = MachineRates(disk, memory, RATES.cores)
    monkeypatch.setattr(module, "machine_rates", lambda pack, here, source: known)
    monkeypatch.setattr(device, "missing_packages", lambda: [])
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def look(given: str | Path, *gpus: Gpu, card: str | None = None, **settings: Any) -> Outlook:
    return outlook(str(given), Basis(EngineSettings(**settings), OPTIONS, gpus=gpus, card=card))


def named(found: Outlook, name: str) -> Any:
    return next(figure for figure in found.figures if figure.name == name)


def test_a_pack_and_what_would_become_it_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "tiny-moe", "qwen3_moe")
    pack_checkpoint(source, tmp_path / "pack", OPTIONS)
    with running_hub(source) as hub:
        made = Hub(Transport(hub.endpoint, None), tmp_path / "cache")
        monkeypatch.setattr(Hub, "from_environment", lambda: made)
        found = [look(tmp_path / "pack"), look(source), look(REPO)]
        sent = sum(1 for host, *_ in hub.requests if host == "cdn")
    assert [one.kind for one in found] == ["pack", "checkpoint", "hub"]
    assert sent == 1  # the header of the only shard
    for one in found[1:]:
        assert one.figures[:3] == found[0].figures[:3]
    here, there = found[1].in_place, found[2].in_place
    assert found[0].in_place is None
    assert here is not None
    assert here == there


def test_in_place_beside_packed(tmp_path: Path) -> None:
    found = look(write_checkpoint(tmp_path / "m", "qwen3_moe"))
    compared = found.in_place
    assert compared is not None
    assert compared.obstacle == ""
    assert compared.read_bytes >= compared.expert_bytes
    assert compared.speedup == pytest.approx(
        named(found, "decode").value / compared.tokens_per_second
    )


def test_why_it_cannot_run_in_place(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", "qwen3_moe", dtype="F16")
    compared = look(source).in_place
    assert compared is not None
    assert compared.obstacle
    assert compared.tokens_per_second == 0


def test_too_little_memory_is_impossible(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", "qwen3_moe")
    found = look(source, ram="1M")
    assert found.verdict == "impossible"
    assert "1.0 MiB (--ram)" in found.reason
    assert not [figure for figure in found.figures if figure.unit == "tok/s"]


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME on the hub"):
        look(tmp_path / "nothing")


def test_a_card_is_planned_for(tiny_packs: TinyPacks) -> None:
    found = look(tiny_packs.get("qwen3_moe"), CARD)
    assert (found.device, found.device_reason) == ("cuda", CARD.name)
    assert named(found, "found on the card").value == 1.0
    assert named(found, "memory on the card").value == int(0.95 * (23 << 30))
    copy = named(found, "card, copy")
    assert (copy.origin, copy.note) == ("assumed", "data sheet of RTX 4090")
    json.dumps(dataclasses.asdict(found))


def test_a_card_with_little_memory_spreads_the_experts(tiny_packs: TinyPacks) -> None:
    pack = tiny_packs.get("qwen3_moe")
    least = look(pack, CARD, vram="1M")
    assert least.verdict == "impossible"
    assert "1.0 MiB (--vram)" in least.reason
    assert "--vram" in least.win


def test_recorded_rates_of_such_a_card_count(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    rates = {
        "card": CARD.name,
        "copy_bytes_per_s": 4e11,
        "host_to_card_bytes_per_s": 2e10,
    }
    row = {"schema": 1, "verb": "card", "time": "2026-11-20T01:02:03", "figures": {"rates": rates}}
    (tmp_path / "home/bench").mkdir(parents=True)
    (tmp_path / "home/bench/card.jsonl").write_text(json.dumps(row) + "\n")
    copy = named(look(tiny_packs.get("qwen3_moe"), CARD), "card, copy")
    assert (copy.value, copy.origin, copy.note) == (4e11, "recorded", "2026-11-20 on such a card")


def test_a_card_that_is_not_here(tiny_packs: TinyPacks) -> None:
    pack = tiny_packs.get("qwen3_moe")
    by_name = look(pack, card="RTX 3060", device="cuda", vram="12G")
    assert named(by_name, "card, copy").note == "data sheet of RTX 3060"
    unnamed = look(pack, device="cuda", vram="12G")
    assert named(unnamed, "card, copy").note == "as a slow card"
    with pytest.raises(UsageError, match=r"no card is here.*--vram 24G"):
        look(pack, device="cuda")
    with pytest.raises(UsageError, match="memory of the card is not known"):
        look(pack, card="RTX 3060", device="cuda")


def test_why_a_card_is_not_used(tiny_packs: TinyPacks, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tiny_packs.get("qwen3_moe")
    assert look(pack).device_reason == "no NVIDIA driver"
    assert look(pack, CARD, device="cpu").device == "cpu"
    silent = dataclasses.replace(CARD, vram=None, free=None)
    assert "--vram" in look(pack, silent).device_reason
    assert look(pack, silent, vram="8G").device == "cuda"
    monkeypatch.setattr(device, "missing_packages", lambda: ["triton"])
    found = look(pack, CARD)
    assert (found.device, "pip install" in found.device_reason) == ("cpu", True)
    assert "after pip install" in look(pack, CARD, device="cuda").device_reason


def test_a_family_that_does_not_run_on_a_card(
    tiny_packs: TinyPacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tiny_packs.get("qwen3_moe")
    monkeypatch.setattr(device, "card_lacks", lambda manifest: "family x")
    found = look(pack, CARD)
    assert (found.device, found.device_reason) == ("cpu", "family x does not run on a card yet")
    with pytest.raises(UsageError, match="does not run on a card yet"):
        look(pack, CARD, device="cuda")
    with pytest.raises(UsageError, match="unknown device"):
        look(pack, device="tpu")
