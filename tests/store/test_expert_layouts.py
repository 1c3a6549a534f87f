"""Experts as gpt-oss publishes them: biases, transposed and paired tensors, MXFP4 blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flashmoe.checkpoint import mxfp4
from flashmoe.checkpoint.directory import Checkpoint
from flashmoe.errors import CheckpointError, ConfigError, NonFiniteError
from flashmoe.quant.layout import from_bf16
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from tests.store.support import OPTIONS, contents, decode_record, read_record
from tests.support.mxfp4 import meaning, write_pair
from tests.support.tiny_checkpoints import CONFIGS, Layout, Tensors, make_tensors, write_checkpoint

STEM = "model.layers.1.mlp.experts"


def data_of(pack: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(pack).items() if name.endswith("safetensors")}


@pytest.mark.parametrize("layout", [Layout(), Layout(fused=True)], ids=["single", "paired"])
def test_records_hold_weights_and_biases(tmp_path: Path, layout: Layout) -> None:
    source = write_checkpoint(tmp_path / "source", "gpt_oss", layout)
    pack_checkpoint(source, tmp_path / "pack", PackOptions.parse("bf16", "q8", 32))
    model, tensors = PackedModel.open(tmp_path / "pack"), make_tensors(CONFIGS["gpt_oss"])
    layout_ = model.manifest.experts
    record = read_record(model, 1, 4)
    for part, w in zip(("gate", "up", "down"), decode_record(layout_, record), strict=True):
        np.testing.assert_array_equal(w, tensors[f"{STEM}.4.{part}_proj.weight"])
    biases = record[layout_.bias_offset :][: layout_.bias_bytes].view("<f4")
    halves = biases[: 2 * 64].reshape(-1, 2, 8)
    pairs = tensors[f"{STEM}.gate_up_proj_bias"][4].reshape(-1, 2)
    for half, column in ((0, 0), (1, 1)):
        np.testing.assert_array_equal(halves[:, half].reshape(-1), pairs[:, column])
    np.testing.assert_array_equal(biases[2 * 64 :], tensors[f"{STEM}.down_proj_bias"][4])


@pytest.mark.parametrize("experts", ["bf16", "q8", "q4", "mxfp4"])
def test_mxfp4_packs_as_the_numbers_that_it_means(tmp_path: Path, experts: str) -> None:
    options = PackOptions.parse(experts, "q8", 32)
    for source in write_pair(tmp_path):
        pack_checkpoint(source, tmp_path / f"{source.name}.pack", options)
    packs = (data_of(tmp_path / f"{name}.pack") for name in ("mxfp4", "plain"))
    assert next(packs) == next(packs)


def test_mxfp4_is_kept_exactly(tmp_path: Path) -> None:
    source, plain = write_pair(tmp_path)
    pack_checkpoint(source, tmp_path / "pack", PackOptions.parse("mxfp4", "q8", 64))
    model = PackedModel.open(tmp_path / "pack")
    assert model.manifest.version == 2
    found = decode_record(model.manifest.experts, read_record(model, 1, 4))
    with Checkpoint(plain) as checkpoint:
        for part, w in zip(("gate", "up", "down"), found, strict=True):
            tensor = checkpoint.tensors[f"{STEM}.4.{part}_proj.weight"]
            bits = checkpoint.read(tensor, 0, tensor.nbytes).view(np.uint16)
            expected = from_bf16(bits).reshape(tensor.shape)
            np.testing.assert_array_equal(w.view(np.uint32), expected.view(np.uint32))


def test_every_code_and_scale_is_exact_in_bf16() -> None:
    scales = np.arange(252, dtype=np.uint8)[:, None]  # beyond, 6 * 2^(s - 127) overflows
    blocks = np.tile(np.arange(16, dtype=np.uint8) * 17 ^ 0x50, (252, 1))
    bits = mxfp4.to_bf16(blocks, scales).view(np.uint16)
    expected = meaning(blocks[:, None], scales)
    np.testing.assert_array_equal(from_bf16(bits).view(np.uint32), expected.view(np.uint32))


def test_scales_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    values = from_bf16(
        mxfp4.to_bf16(np.full((1, 16), 0x77, np.uint8), np.array([[255]], np.uint8)).view(np.uint16)
    )
    assert np.isnan(values).all()
    source, _ = write_pair(tmp_path)
    file = source / "model.safetensors"
    raw = bytearray(file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin = json.loads(raw[8 : 8 + length])[f"{STEM}.down_proj_scales"]["data_offsets"][0]
    raw[8 + length + begin + 7] = 255
    file.write_bytes(raw)
    with pytest.raises(NonFiniteError, match=r"down_proj_blocks: .*nan at row 3, element 32"):
        pack_checkpoint(source, tmp_path / "pack", OPTIONS)


def test_a_bias_that_is_not_finite_is_named(tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[f"{STEM}.gate_up_proj_bias"][3, 5] = np.inf

    source = write_checkpoint(tmp_path / "source", "gpt_oss", change=damage)
    with pytest.raises(NonFiniteError, match=r"gate_up_proj_bias: .*inf at row 3, column 5"):
        pack_checkpoint(source, tmp_path / "pack", OPTIONS)


def test_a_transposed_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[f"{STEM}.2.up_proj.weight"][9, 11] = np.nan

    source = write_checkpoint(tmp_path / "source", "gpt_oss", Layout(fused=True), change=damage)
    with pytest.raises(NonFiniteError, match=r"gate_up_proj: .*nan at row 139, column 19"):
        pack_checkpoint(source, tmp_path / "pack", OPTIONS)


def test_shapes_and_types_are_checked(tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        [
            ({"intermediate_size": 32}, r"gate_up_proj_blocks: .*expected \[6, 64, 2, 16\]"),
            ({"hidden_size": 48}, "."),
        ]
    ):
        source, _ = write_pair(tmp_path / str(number))
        config = json.loads((source / "config.json").read_text()) | change
        (source / "config.json").write_text(json.dumps(config))
        with pytest.raises((ConfigError, CheckpointError), match=message):
            pack_checkpoint(source, tmp_path / f"{number}.pack", OPTIONS)


def test_a_family_without_mxfp4_refuses_bytes(tmp_path: Path) -> None:
    def damage(tensors: Tensors) -> None:
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = np.zeros(tensors[name].shape, np.uint8)  # type: ignore[assignment]

    source = write_checkpoint(tmp_path / "source", "gpt_oss", change=damage)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight: weight type is not supported"):
        pack_checkpoint(source, tmp_path / "pack", OPTIONS)
