"""Matrices that want their input quantised in groups of different sizes, beside each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.ops.base import Matrix, Ops
from flashmoe.ops.cpu import CpuOps
from flashmoe.ops.reference import ReferenceOps
from flashmoe.quant import Format
from flashmoe.store.packed import PackedModel
from tests.ops.test_parts import ComposedCpuOps
from tests.support import quantised as made
from tests.support.packs import assert_same_bits, load_with, transcript
from tests.support.tolerances import LOGITS_FLIPPED

FORMATS = [Format("q4", 32), Format("q4", 64), Format("q8", 128), Format("bf16"), Format("q8", 32)]
COLS, ROWS = 256, 24
ATTENTION = "model.layers.0.self_attn"


def matrices(ops: Ops) -> list[Matrix]:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((len(FORMATS), ROWS, COLS)).astype(np.float32)
    return [
        ops.matrix(format_, ROWS, COLS, format_.encode(w))
        for format_, w in zip(FORMATS, weights, strict=True)
    ]


@pytest.mark.parametrize("make", [lambda: CpuOps(2), ReferenceOps], ids=["cpu", "reference"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_one_call_is_as_good_as_several(make: type[Ops], tokens: int) -> None:
    ops = make()
    x = np.random.default_rng(2).standard_normal((tokens, COLS)).astype(np.float32)
    several = [ops.linear(x, matrix)[0].copy() for matrix in matrices(ops)]
    ops.begin_layer()
    for got, expected in zip(ops.linear(x, *matrices(ops)), several, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q, k and v in groups of different sizes."""
    path = tmp_path_factory.mktemp("groups")
    own = {f"{ATTENTION}.k_proj": (4, 32), f"{ATTENTION}.v_proj": (4, 64)}
    source, _ = made.write_pair(path, made.mlx(4, 64, "BF16", own))
    (source / "tokenizer.json").unlink()
    flashmoe.pack(source, path / "pack")
    return path / "pack"


def test_attention_multiplies_each_by_its_own(pack: Path) -> None:
    tensors = PackedModel.open(pack).manifest.tensors
    names = (f"layers.0.self_attn.{name}_proj" for name in "qkv")
    formats = [getattr(tensors[name], "format", None) for name in names]
    assert formats == [Format("q4", 64), Format("q4", 32), Format("q4", 64)]
    prompt, found = list(range(3, 30)), []
    for make_ops in (ComposedCpuOps, CpuOps):
        with load_with(pack, make_ops=make_ops) as model:
            found.append(transcript(model, prompt, 4))
    assert_same_bits(found[1], found[0])
    with load_with(pack, make_ops=lambda threads, isa: ReferenceOps()) as model:
        assert np.abs(model.logits(prompt) - found[1].prompt).max() <= LOGITS_FLIPPED
