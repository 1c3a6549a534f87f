"""A GGUF file packs to the bytes that the same weights give as a checkpoint from the hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.errors import ConfigError
from flashmoe.models.gguf_config import read_config
from flashmoe.ops.reference import ReferenceOps
from flashmoe.store.gguf_source import GgufCheckpoint
from flashmoe.store.packed import PackedModel
from tests.store.support import contents, decode_record, read_record
from tests.support.gguf_files import ARCH, write_gguf
from tests.support.packs import load_with
from tests.support.tiny_checkpoints import Layout, write_checkpoint
from tests.support.tolerances import LOGITS_FLIPPED, LOGITS_REFERENCE

IDS = np.arange(1, 40, dtype=np.int32) % 100
DATA = ("resident.safetensors", "experts-000.safetensors", "experts-001.safetensors")


@pytest.mark.parametrize("family", sorted(ARCH))
def test_a_file_of_floats_gives_the_pack_of_the_checkpoint(family: str, tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "m.gguf", family)

    def same(others: dict[str, np.ndarray]) -> None:
        others.update(tensors)

    write_checkpoint(tmp_path / "hub", family, Layout(dtype="F32"), change=same)
    (tmp_path / "hub" / "tokenizer.json").unlink()
    for source, to in (("hub", "a"), ("m.gguf", "b")):
        flashmoe.pack(tmp_path / source, tmp_path / to, experts="q8", dense="q8", group=32)
    first, second = PackedModel.open(tmp_path / "a"), PackedModel.open(tmp_path / "b")
    a, b = first.load_resident(), second.load_resident()
    assert a.keys() == b.keys()
    for name in a:
        x, y = (getattr(t[name], "data", t[name]) for t in (a, b))
        # A_log went through exp and log.
        close = np.allclose(x, y, rtol=1e-6, atol=1e-7) if "A_log" in name else None
        assert close or np.array_equal(np.asarray(x), np.asarray(y)), name
    for name in first.manifest.data_files():
        if name.startswith("experts"):
            assert contents(tmp_path / "a")[name] == contents(tmp_path / "b")[name]
    with flashmoe.load(tmp_path / "a") as one, flashmoe.load(tmp_path / "b") as two:
        assert np.allclose(one.logits(IDS), two.logits(IDS), rtol=1e-4, atol=1e-5)


# Hidden and intermediate sizes that 256 divides, as the K formats want them.
WIDE = {"hidden_size": 256, "num_hidden_layers": 2}
INNER = {
    "qwen3_moe": {"moe_intermediate_size": 256},
    "gpt_oss": {"intermediate_size": 256},
    "mixtral": {"intermediate_size": 256},
    "deepseek_v3": {"moe_intermediate_size": 256},
}
BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
CASES = [
    *(("qwen3_moe", kind) for kind in [*BLOCKS, "IQ4_NL", "IQ4_XS", "MXFP4"]),
    *((family, kind) for family in list(INNER)[1:] for kind in ("Q4_K", "Q8_0")),
    ("gpt_oss", "MXFP4"),
]


@pytest.mark.parametrize(("family", "kind"), CASES, ids=str)
def test_experts_are_kept_as_they_are(family: str, kind: str, tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "m.gguf", family, kind, **WIDE, **INNER[family])
    flashmoe.pack(tmp_path / "m.gguf", tmp_path / "packed", dense="bf16")
    pack = PackedModel.open(tmp_path / "packed")
    layout = pack.manifest.experts
    assert (layout.gate_up.name, layout.down.name) == (kind.lower(), kind.lower())
    assert pack.manifest.version == (2 if kind == "MXFP4" else 3)
    layer = pack.manifest.layers[0].layer
    for expert in (0, 5):
        parts = decode_record(layout, read_record(pack, layer, expert))
        for name, got in zip(("gate", "up", "down"), parts, strict=True):
            expected = tensors[f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"]
            assert np.array_equal(got, expected)
    with flashmoe.load(tmp_path / "packed") as model:
        native = model.logits(IDS)
    with load_with(tmp_path / "packed", make_ops=lambda threads, isa: ReferenceOps()) as model:
        error = np.abs(model.logits(IDS) - native).max()
    # Inputs of MXFP4 are rounded to int8, those of block formats are not.
    assert error <= (LOGITS_FLIPPED if kind == "MXFP4" else LOGITS_REFERENCE)


def test_layers_keep_their_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {**WIDE, **INNER["qwen3_moe"]}
    tensors = write_gguf(tmp_path / "m.gguf", "qwen3_moe", "Q4_K", others={1: "Q6_K"}, **sizes)
    flashmoe.pack(tmp_path / "m.gguf", tmp_path / "packed")
    assert caplog.text == ""
    pack = PackedModel.open(tmp_path / "packed")
    for layer, layout in pack.manifest.layouts.items():
        gate, _, _ = decode_record(layout, read_record(pack, layer, 3))
        expected = tensors[f"model.layers.{layer}.mlp.experts.3.gate_proj.weight"]
        np.testing.assert_array_equal(gate, expected)


def test_an_architecture_without_family_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen3_moe", extra={"general.architecture": "falcon"})
    with pytest.raises(ConfigError, match=r"GGUF architecture is not supported.*got 'falcon'"):
        flashmoe.pack(tmp_path / "m.gguf", tmp_path / "packed")


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_rounded_like_any_float(kind: str, tmp_path: Path) -> None:
    sizes = {**WIDE, **INNER["qwen3_moe"]}
    tensors = write_gguf(tmp_path / "m.gguf", "qwen3_moe", kind, **sizes)
    for name in ("q8", "same"):
        flashmoe.pack(tmp_path / "m.gguf", tmp_path / name, experts=name, group=32)
        pack = PackedModel.open(tmp_path / name)
        layout = pack.manifest.experts
        parts = decode_record(layout, read_record(pack, 1, 2))
        assert layout.gate_up.name == ("bf16" if name == "same" else "q8")
        for got, part in zip(parts, ("gate", "up", "down"), strict=True):
            w = tensors[f"model.layers.1.mlp.experts.2.{part}_proj.weight"]
            expected = layout.gate_up.decode(layout.gate_up.encode(w), *w.shape)
            np.testing.assert_array_equal(got, expected)


def test_deepseek_without_groups_of_experts_is_one_group_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_gguf(tmp_path / "m.gguf", "deepseek_v3")
    with GgufCheckpoint(tmp_path / "m.gguf") as checkpoint:
        stated = checkpoint.config
        metadata = dict(checkpoint.files[tmp_path / "m.gguf"].metadata)
    assert stated["n_group"] > 1
    assert caplog.text == ""
    for key in ("expert_group_count", "expert_group_used_count"):
        del metadata[f"deepseek2.{key}"]
    config = read_config(metadata, [], tmp_path / "m.gguf")
    assert (config["n_group"], config["topk_group"]) == (1, 1)
    assert "does not say in which groups experts are chosen" in caplog.text
