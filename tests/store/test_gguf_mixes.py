"""GGUF mixes, whose layers and matrices differ in type: packed, every number is the file's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import flashmoe
from flashmoe.ops.reference import ReferenceOps
from flashmoe.store.packed import LoadedMatrix, PackedModel
from flashmoe.store.verify import verify
from tests.store.support import decode_record, read_record
from tests.support.gguf_files import Kind
from tests.support.gguf_recipes import RECIPES, write_mix
from tests.support.packs import assert_same_bits, load_with, transcript
from tests.support.tolerances import LOGITS_REFERENCE

DENSE = {
    "token_embd": "embed_tokens",
    "output": "lm_head",
    **{
        f"blk.{layer}.attn_{a}": f"layers.{layer}.self_attn.{b}_proj"
        for layer in range(8)
        for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))
    },
}
PROMPT, STEPS = list(range(5, 45)), 6


@pytest.fixture(scope="module", params=[*RECIPES, "Q4_K_M-fused"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mix") / "m.gguf"
    name, _, fused = request.param.partition("-")
    write_mix(path, name, fused=bool(fused))
    flashmoe.pack(path, path.parent / "packed", experts="same", dense="same")
    return path


def decoded(source: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Type and weights of every quantised tensor, by the gguf package."""
    return {
        tensor.name.removesuffix(".weight"): (
            tensor.tensor_type.name.lower(),
            gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type),
        )
        for tensor in gguf.GGUFReader(source).tensors
        if tensor.tensor_type != Kind.F32
    }


def experts_of(source: Path, layer: int) -> list[tuple[str, np.ndarray]]:
    """Types and weights [E, rows, cols] of gate, up and down."""
    found = decoded(source)
    fused = found.get(f"blk.{layer}.ffn_gate_up_exps")
    if fused is None:
        return [found[f"blk.{layer}.ffn_{part}_exps"] for part in ("gate", "up", "down")]
    gate, up = np.split(fused[1], 2, axis=1)
    return [(fused[0], gate), (fused[0], up), found[f"blk.{layer}.ffn_down_exps"]]


def test_every_expert_is_the_files(source: Path) -> None:
    pack = PackedModel.open(source.parent / "packed")
    assert pack.manifest.version == 5
    for layer, layout in pack.manifest.layouts.items():
        expected = experts_of(source, layer)
        names = (layout.gate_up.name, layout.gate_up.name, layout.down.name)
        assert names == tuple(kind for kind, _ in expected)
        for expert in range(pack.num_experts):
            parts = decode_record(layout, read_record(pack, layer, expert))
            for got, (_, weights) in zip(parts, expected, strict=True):
                np.testing.assert_array_equal(got, weights[expert])


def test_every_dense_matrix_is_the_files(source: Path) -> None:
    loaded = PackedModel.open(source.parent / "packed").load_resident()
    found = decoded(source)
    for name, ours in DENSE.items():
        kind, expected = found[name]
        matrix = loaded[ours]
        assert isinstance(matrix, LoadedMatrix)
        assert matrix.format.name == kind
        got = matrix.format.decode(matrix.data, matrix.rows, matrix.cols)
        np.testing.assert_array_equal(got, expected)


def test_the_defaults_keep_the_same(source: Path, tmp_path: Path) -> None:
    flashmoe.pack(source, tmp_path / "auto")
    for file in (source.parent / "packed").glob("*.safetensors"):
        assert (tmp_path / "auto" / file.name).read_bytes() == file.read_bytes()
    assert verify(tmp_path / "auto") == []


def run(path: Path, **settings: Any) -> Any:
    with flashmoe.load(path, readers=1, **settings) as model:
        return transcript(model, PROMPT, STEPS)


def test_outputs_in_place_and_packed_are_the_same_for_all_caches(source: Path) -> None:
    pack = source.parent / "packed"
    expected = run(pack, cache="all", prefetch="off")
    size = PackedModel.open(pack).manifest.experts.record_bytes
    for path in (pack, source):
        for cache in (0, 4 * size, 16 * size):
            assert_same_bits(run(path, cache=cache, prefetch="on"), expected)


def test_outputs_are_those_of_the_reference(source: Path) -> None:
    pack = source.parent / "packed"
    with flashmoe.load(pack) as model:
        native = model.logits(PROMPT)
    with load_with(pack, make_ops=lambda threads, isa: ReferenceOps()) as model:
        error = np.abs(model.logits(PROMPT) - native).max()
    assert error <= LOGITS_REFERENCE * max(1, np.abs(native).max())
