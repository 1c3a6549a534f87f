from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flashmoe.errors import PackError
from flashmoe.models.registry import load_family
from flashmoe.quant import Format
from flashmoe.store.consistency import check_against
from flashmoe.store.format import ExpertLayer, Matrix, Vector
from tests.store.support import make_pack
from tests.support.tiny_checkpoints import CONFIGS


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pack_agrees_with_its_own_config(tmp_path: Path, family: str) -> None:
    module = load_family(family)
    specs = module.weights(module.read_config(CONFIGS[family]))
    check_against(make_pack(tmp_path, family).manifest, specs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 99}, r"embed_tokens: .*expected \[99, 64\], got \[100, 64\]"),
        ({"tie_word_embeddings": True}, "lm_head: .*expected nothing, got"),
        ({"moe_intermediate_size": 32}, r"experts of layer 0: .*expected \[6, 64, 32\]"),
        ({"num_hidden_layers": 1}, r"layers\.1\.\S+: .*expected nothing"),
        ({"num_hidden_layers": 3}, r"layers\.2\.\S+: .*got nothing"),
    ],
)
def test_contradictions(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    module = load_family("qwen3_moe")
    specs = module.weights(module.read_config({**CONFIGS["qwen3_moe"], **change}))
    with pytest.raises(PackError, match=message):
        check_against(make_pack(tmp_path, "qwen3_moe").manifest, specs)


def test_wrong_kind_and_wrong_layers(tmp_path: Path) -> None:
    manifest = make_pack(tmp_path, "qwen3_moe").manifest
    module = load_family("qwen3_moe")
    specs = module.weights(module.read_config(CONFIGS["qwen3_moe"]))
    tensors = {**manifest.tensors, "norm": Vector((63,))}
    with pytest.raises(PackError, match=r"norm: .*expected \[64\], got \[63\]"):
        check_against(dataclasses.replace(manifest, tensors=tensors), specs)
    tensors = {**manifest.tensors, "norm": Matrix(Format("bf16"), 1, 64)}
    with pytest.raises(PackError, match=r"norm: .*expected nothing, got \[1, 64\]"):
        check_against(dataclasses.replace(manifest, tensors=tensors), specs)
    layers = (manifest.layers[0], ExpertLayer(7, manifest.layers[1].crc32c))
    with pytest.raises(PackError, match=r"layers with experts: .*\[0, 1\], got \[0, 7\]"):
        check_against(dataclasses.replace(manifest, layers=layers), specs)
