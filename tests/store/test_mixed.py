"""Packs whose layers have experts in different formats: manifest, files, sizes, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.errors import PackError, UsageError
from flashmoe.planning import card_lacks
from flashmoe.quant import Format
from flashmoe.store.format import ExpertFormats, ExpertLayer, Manifest
from flashmoe.store.info import pack_info
from flashmoe.store.manifest import from_json, to_json
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from flashmoe.store.verify import verify
from tests.store.support import decode_record, make_pack, read_record
from tests.store.test_manifest import MANIFEST, Q4, Q8
from tests.support.damage import flip_bit

G4, G8, BF16 = Format("q4", 32), Format("q8", 32), Format("bf16")
# One entry per layer of the tiny model, the largest not first.
FORMATS = {0: ExpertFormats(G4, G8), 1: ExpertFormats(G8, G8), 2: ExpertFormats(G4, BF16)}
OPTIONS = dataclasses.replace(PackOptions.parse("q4", "q8", 32), by_layer=FORMATS)
MIXED: Manifest = dataclasses.replace(
    MANIFEST,
    layers=(
        MANIFEST.layers[0],
        dataclasses.replace(MANIFEST.layers[1], formats=ExpertFormats(Q4, Q4)),
    ),
)
RAW = json.loads(to_json(MIXED))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    return make_pack(tmp_path_factory.mktemp("mixed"), "qwen3_5_moe", OPTIONS)


def test_layers_have_the_formats_asked_for(pack: PackedModel, tmp_path: Path) -> None:
    layouts = pack.manifest.layouts
    assert {layer: layouts[layer].formats for layer in FORMATS} == FORMATS
    assert layouts[3].formats == ExpertFormats(G4, G4)
    assert pack.manifest.version == 5
    for layer, layout in layouts.items():
        alone = PackOptions(layout.gate_up, OPTIONS.dense, down=layout.down)
        pack_checkpoint(pack.path.parent / "source", tmp_path / str(layer), alone)
        other = PackedModel.open(tmp_path / str(layer))
        for expert in range(pack.num_experts):
            got, expected = read_record(pack, layer, expert), read_record(other, layer, expert)
            assert (got == expected).all()


def test_a_slot_holds_the_largest_record(pack: PackedModel) -> None:
    sizes = [layout.record_bytes for layout in pack.manifest.layouts.values()]
    assert len(set(sizes)) > 1
    assert pack.manifest.experts.record_bytes == max(sizes)
    assert pack.expert_bytes == pack.num_experts * sum(sizes)
    assert pack.extent(1, 3).nbytes == pack.manifest.layouts[1].record_bytes


def test_info_counts_layers_and_the_waste(pack: PackedModel) -> None:
    facts = pack_info(pack, 2)
    sizes = [layout.record_bytes for layout in pack.manifest.layouts.values()]
    assert facts.bytes_per_token == 2 * sum(sizes)
    assert facts.slot_waste == pytest.approx(1 - sum(sizes) / len(sizes) / max(sizes))
    assert facts.expert_formats == {
        "q4 g32, q8 g32": 1, "q8 g32": 1, "q4 g32, bf16": 1, "q4 g32": 1,
    }  # fmt: skip


def test_verify_finds_damage_in_every_layer(pack: PackedModel) -> None:
    assert verify(pack.path) == []
    for layer in pack.manifest.layers:
        extent = pack.extent(layer.layer, 5)
        at = extent.path, extent.offset + extent.nbytes - 1
        flip_bit(*at)
        (damage,) = verify(pack.path)
        flip_bit(*at)
        assert "expert 5" in str(damage)


def test_formats_of_a_layer_that_is_not_there(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, by_layer={9: FORMATS[0]})
    with pytest.raises(UsageError, match=r"formats by layer: no such layer.*got 9"):
        make_pack(tmp_path, options=options)


def test_layers_that_share_a_file_share_its_formats(tmp_path: Path) -> None:
    pack = make_pack(tmp_path, options=dataclasses.replace(OPTIONS, distinct=2))
    layouts = pack.manifest.layouts
    assert [layouts[layer].formats for layer in range(4)] == [FORMATS[0], FORMATS[1]] * 2
    assert from_json(to_json(pack.manifest).encode()) == pack.manifest


def test_a_card_refuses_them(pack: PackedModel) -> None:
    plain = dataclasses.replace(pack.manifest, layers=(ExpertLayer(0, (0,) * pack.num_experts),))
    assert card_lacks(plain) is None
    assert card_lacks(pack.manifest) == "layers whose experts differ in format"


def test_round_trip() -> None:
    assert from_json(to_json(MIXED).encode()) == MIXED
    assert RAW["version"] == 5
    assert "gate_up" not in RAW["experts"]["layers"][0]
    assert RAW["experts"]["layers"][1]["record_bytes"] == 16384


def test_a_reader_of_version_4_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmoe.store.manifest.VERSIONS", (1, 2, 3, 4))
    with pytest.raises(PackError, match=r"unknown format version.*got 5"):
        from_json(to_json(MIXED).encode())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": {"format": "q8", "group": 64}}, "record_bytes"),
        ({"gate_up": {"format": "q4", "group": 48}}, "group"),
        ({"gate_up": {"format": "q4", "group": 64, "x": 1}}, "unknown key"),
        ({"record_bytes": 12288}, "expected 16384"),
        ({"bias_offset": 64}, "bias_offset"),
        ({"file": "experts-001.safetensors", "crc32c": [4, 5]}, "the formats of layer 1"),
        ({"down": ...}, "field is missing"),
        ({"gate_up": ...}, "unknown key"),
    ],
)
def test_contradictions(change: dict[str, Any], message: str) -> None:
    raw = json.loads(to_json(MIXED))
    layer = raw["experts"]["layers"][1]
    layer |= change
    for key in [key for key, value in change.items() if value is ...]:
        del layer[key]
    with pytest.raises(PackError, match=message):
        from_json(json.dumps(raw).encode())


def test_a_layer_larger_than_the_largest_is_refused() -> None:
    layers = (
        MANIFEST.layers[0],
        dataclasses.replace(MANIFEST.layers[1], formats=ExpertFormats(Q8, Q8)),
    )
    text = to_json(dataclasses.replace(MANIFEST, layers=layers))
    with pytest.raises(PackError, match="records are not larger"):
        from_json(text.encode())


def test_records_decode_to_what_each_format_makes(pack: PackedModel) -> None:
    """Gate of layer 1 has q8 and that of layer 2 q4: errors differ accordingly."""
    exact = PackOptions.parse("bf16", "q8", 32)
    pack_checkpoint(pack.path.parent / "source", pack.path.parent / "exact", exact)
    other = PackedModel.open(pack.path.parent / "exact")
    for layer, layout in pack.manifest.layouts.items():
        got = decode_record(layout, read_record(pack, layer, 2))
        expected = decode_record(other.manifest.experts, read_record(other, layer, 2))
        for one, two, format_ in zip(
            got, expected, (layout.gate_up, layout.gate_up, layout.down), strict=True
        ):
            np.testing.assert_array_equal(one, format_.decode(format_.encode(two), *two.shape))
