"""The formulas, and the outlook of a pack, of its checkpoint and of the same on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.errors import UsageError
from flashmoe.forecast import outlook as module
from flashmoe.forecast.model import (
    Rates,
    Sizes,
    first_token_seconds,
    hit_rate,
    tokens_per_second,
)
from flashmoe.forecast.outlook import Outlook, biggest_win, outlook
from flashmoe.hub.repo import Hub
from flashmoe.hub.transport import Transport
from flashmoe.settings import EngineSettings
from flashmoe.store.pack import pack_checkpoint
from tests.store.support import OPTIONS
from tests.support.hub_server import REPO, running_hub
from tests.support.tiny_checkpoints import write_checkpoint

# A row of bench/results/decode.jsonl: 24 layers of Qwen3-30B-A3B, hit rate 0.177, 3.73 tok/s.
ROW = Sizes(24, 128, 8, 2_654_208, 824_918_016, 1_676_519_424)
ROW_RATES = Rates(1.728e9, 41.6e9, 2)


def test_a_recorded_run_is_met() -> None:
    assert tokens_per_second(ROW, ROW_RATES, 0.177) == pytest.approx(3.73, rel=0.15)


def test_limits_of_the_formulas() -> None:
    assert (hit_rate(0.0), hit_rate(1.0)) == (0.0, 1.0)
    in_memory = tokens_per_second(ROW, ROW_RATES, 1.0)
    assert in_memory > tokens_per_second(ROW, ROW_RATES, 0.5) > 0
    cold, warm = (first_token_seconds(ROW, ROW_RATES, 16, share) for share in (0.0, 1.0))
    assert warm < cold
    assert "7 GB/s" in biggest_win(ROW, ROW_RATES, 100)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_rates", lambda pack, kind: ROW_RATES)
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))


def look(given: str, **settings: object) -> Outlook:
    return outlook(given, EngineSettings(**settings), OPTIONS)  # type: ignore[arg-type]


def test_a_pack_and_what_would_become_it_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "tiny-moe", "qwen3_moe")
    pack_checkpoint(source, tmp_path / "pack", OPTIONS)
    with running_hub(source) as hub:
        made = Hub(Transport(hub.endpoint, None), tmp_path / "cache")
        monkeypatch.setattr(Hub, "from_environment", lambda: made)
        found = [look(str(tmp_path / "pack")), look(str(source)), look(REPO)]
        sent = sum(1 for host, *_ in hub.requests if host == "cdn")
    assert [one.kind for one in found] == ["pack", "checkpoint", "hub"]
    assert sent == 1  # the header of the only shard
    for one in found[1:]:
        assert one.figures[:3] == found[0].figures[:3]


def test_too_little_memory_is_impossible(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", "qwen3_moe")
    found = look(str(source), ram="1M")
    assert found.verdict == "impossible"
    assert "1.0 MiB (--ram)" in found.reason


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME on the hub"):
        look(str(tmp_path / "nothing"))
