"""Models whose layers have experts in different formats: outputs do not depend on the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.ops.reference import ReferenceOps
from flashmoe.quant import Format
from flashmoe.store.format import ExpertFormats
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from tests.support.fake_reader import FakeReader
from tests.support.packs import SIZES, assert_same_bits, lively, load_with, some_ids, transcript
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tolerances import LOGITS_FLIPPED

G4, G8, BF16 = Format("q4", 32), Format("q8", 64), Format("bf16")
Q2, Q3, MXFP4 = Format("q2", 32), Format("q3", 64), Format("mxfp4", 32)
# Records of six sizes in as many layers; gate and up in groups of other sizes than down.
FORMATS = (
    ExpertFormats(G4, G8),
    ExpertFormats(G8, G4),
    ExpertFormats(BF16, BF16),
    ExpertFormats(Q2, Q3),
    ExpertFormats(MXFP4, G4),
    ExpertFormats(Q3, BF16),
)
TYPES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {},
    "qwen3_5_moe": {"layer_types": ["linear_attention", "full_attention"] * 3},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"] * 3},
}
PROMPT, STEPS, FLOOR = some_ids(100), 12, 5


@pytest.fixture(scope="module", params=TYPES)
def pack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed")
    sizes = {**SIZES, "num_hidden_layers": 6, **TYPES[request.param]}
    write_checkpoint(path / "source", request.param, change=lively, **sizes)
    (path / "source" / "tokenizer.json").unlink()
    by_layer = dict(enumerate(FORMATS))
    options = dataclasses.replace(PackOptions.parse("q4", "q8", 32), by_layer=by_layer)
    pack_checkpoint(path / "source", path / "pack", options)
    return path / "pack"


def run(pack: Path, **settings: Any) -> Any:
    with flashmoe.load(pack, **{"readers": 1, **settings}) as model:
        return transcript(model, PROMPT, STEPS)


def slot_bytes(pack: Path) -> int:
    return PackedModel.open(pack).manifest.experts.record_bytes


@pytest.mark.parametrize("prefetch", ["on", "off"])
@pytest.mark.parametrize("slots", [0, FLOOR, 9, 24, 70])
def test_every_cache_gives_the_same_bits(pack: Path, slots: int, prefetch: str) -> None:
    expected = run(pack, cache="all", threads=1)
    cache = slots * slot_bytes(pack)
    assert_same_bits(run(pack, cache=cache, threads=2, prefetch=prefetch), expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_guesses_late_or_in_time_give_the_same_bits(pack: Path, share: float) -> None:
    reader = FakeReader(seed=1, guess_share=share)
    settings: dict[str, Any] = {"cache": 24 * slot_bytes(pack), "readers": 1, "prefetch": "on"}
    with load_with(pack, make_reader=lambda threads: reader, **settings) as model:
        assert_same_bits(transcript(model, PROMPT, STEPS), run(pack, cache="all"))
        assert model.stats.prefetched > 0


def test_the_reference_backend_agrees(pack: Path) -> None:
    few = PROMPT[:20]  # a code that falls the other way is passed on by every token after it
    with flashmoe.load(pack) as model:
        native = model.logits(few)
    with load_with(pack, make_ops=lambda threads, isa: ReferenceOps()) as model:
        assert np.abs(model.logits(few) - native).max() <= LOGITS_FLIPPED


def test_bytes_read_are_those_of_the_records(pack: Path) -> None:
    manifest = PackedModel.open(pack).manifest
    with flashmoe.load(pack, cache=0, readers=1) as model:
        model.logits(PROMPT[:1])
        stats = model.stats
    assert stats.bytes_read == 4 * manifest.layer_bytes
    assert stats.cache_misses == 4 * len(manifest.layers)


def test_memory_is_counted_in_slots_of_the_largest(pack: Path) -> None:
    size = slot_bytes(pack)
    with flashmoe.load(pack, cache=9 * size, readers=1) as model:
        assert model.stats.cache_bytes == 9 * size
