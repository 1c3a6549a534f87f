"""Quantised checkpoints: what a pack holds is, to the bit, what the source means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.errors import CheckpointError, ConfigError, FlashMoeError, NonFiniteError
from flashmoe.quant.layout import Floats
from flashmoe.store import format as fmt
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from tests.store.support import contents, decode_record, read_record
from tests.support import quantised as made
from tests.support.quantised import Quantiser
from tests.support.tolerances import KEPT_LOGITS

MLX = {
    f"mlx{bits}-{dtype.lower()}-g{group}": (made.mlx(bits, group, dtype), expected)
    for bits, group, dtype, expected in [
        (4, 64, "BF16", "q4"),
        (4, 32, "BF16", "q4"),
        *((bits, 64, "BF16", f"affine{bits}_bf16_g64") for bits in (2, 3, 5, 6, 8)),
        *((bits, 32, "F16", f"affine{bits}_f16_g32") for bits in (2, 3, 4, 5, 6, 8)),
        *((bits, 64, "F32", f"affine{bits}_f32_g32") for bits in (3, 4)),
    ]
}
OTHERS = {
    "mlx-mxfp4": (made.mlx_fp4("mxfp4"), "mxfp4"),
    "mlx-nvfp4": (made.mlx_fp4("nvfp4"), "nvfp4_64"),
    "gptq4-v1-sym": (made.gptq(4, 64, sym=True), "affine4_f16_g64"),
    "gptq4-v1": (made.gptq(4, 32, sym=False), "zero4_f16_g32"),
    "gptq4-v2": (made.gptq(4, 64, sym=False, version=2), "zero4_f16_g32"),
    "gptq8-v1": (made.gptq(8, 64, sym=False), "zero8_f16_g32"),
    "gptq2-v1": (made.gptq(2, 64, sym=False), "affine2_f32_g32"),
    "gptq3-v1": (made.gptq(3, 32, sym=False), "affine3_f32_g32"),
    "gptq4-bf16": (made.gptq(4, 64, sym=True, dtype="BF16"), "q4"),
    "awq": (made.awq(32), "zero4_f16_g32"),
    "ct4-sym-g32": (made.compressed(4, 32, sym=True, dtype="BF16"), "q4"),
    "ct4-asym-g64": (made.compressed(4, 64, sym=False, dtype="BF16"), "zero4_bf16_g32"),
    "ct4-channel": (made.compressed(4, 0, sym=True, dtype="F16"), "affine4_f16_g64"),
    "ct8-sym-channel": (made.compressed(8, 0, sym=True, dtype="BF16"), "affine8_bf16_g64"),
    "ct8-plain": (
        made.compressed(8, 0, sym=False, dtype="BF16", packed=False),
        "zero8_bf16_g32",
    ),
    "ct-nvfp4": (made.two_level(divides=True), "nvfp4_div_64"),
    "modelopt-nvfp4": (made.two_level(divides=False), "nvfp4_64"),
}
CASES = MLX | OTHERS
SAME = PackOptions.parse("auto", "auto", 32)
cases = pytest.mark.parametrize("name", sorted(CASES))


def plain_tensors(path: Path) -> dict[str, Floats]:
    raw = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    return {
        name: np.frombuffer(raw, "<f4", int(np.prod(e["shape"])), 8 + length + e["data_offsets"][0])
        .reshape(e["shape"])
        .astype(np.float32)
        for name, e in entries.items()
    }


def resident(model: PackedModel, name: str) -> Floats:
    tensor = model.manifest.tensors[name]
    assert isinstance(tensor, fmt.Matrix)
    start = len(model.manifest.resident_header()) + model.manifest.tensor_offsets()[name]
    data = np.fromfile(model.path / fmt.RESIDENT, np.uint8, tensor.nbytes, offset=start)
    return tensor.format.decode(data, tensor.rows, tensor.cols)


def same_bits(found: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(found, expected)


@cases
def test_kept_to_the_bit(tmp_path: Path, name: str) -> None:
    method, expected = CASES[name]
    source, plain = made.write_pair(tmp_path, method)
    pack_checkpoint(source, tmp_path / "pack", SAME)
    model, truth = PackedModel.open(tmp_path / "pack"), plain_tensors(plain)
    assert model.manifest.experts.gate_up.name == expected
    for expert in (0, 5):
        parts = decode_record(model.manifest.experts, read_record(model, 0, expert))
        for part, w in zip(("gate", "up", "down"), parts, strict=True):
            same_bits(w, truth[f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight"])
    for part in "qkvo":
        stem = f"layers.0.self_attn.{part}_proj"
        same_bits(resident(model, stem), truth[f"model.{stem}.weight"])
    if method.every:
        same_bits(resident(model, "embed_tokens"), truth["model.embed_tokens.weight"])
        same_bits(resident(model, "layers.0.mlp.gate"), truth["model.layers.0.mlp.gate.weight"])


@cases
def test_converting_gives_what_the_plain_weights_give(tmp_path: Path, name: str) -> None:
    source, plain = made.write_pair(tmp_path, CASES[name][0])
    packs = []
    for path in (source, plain):
        pack_checkpoint(path, tmp_path / f"{path.name}.pack", PackOptions.parse("q8", "q8", 32))
        files = contents(tmp_path / f"{path.name}.pack")
        packs.append({n: data for n, data in files.items() if n.endswith(".safetensors")})
    assert packs[0] == packs[1]


@pytest.mark.parametrize("name", ["mlx6-f16-g32", "gptq4-v1", "ct-nvfp4", "mlx4-bf16-g64"])
def test_logits_are_those_of_the_meant_weights(tmp_path: Path, name: str) -> None:
    source, plain = made.write_pair(tmp_path, CASES[name][0])
    logits = []
    for path, formats in ((source, "auto"), (plain, "bf16")):
        (path / "tokenizer.json").unlink()  # a placeholder
        flashmoe.pack(path, tmp_path / f"{path.name}.pack", experts=formats, dense=formats)
        with flashmoe.load(tmp_path / f"{path.name}.pack") as model:
            logits.append(model.session().feed_all([1, 5, 9, 30, 2]))
    error = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
    assert error < KEPT_LOGITS


def test_overrides_by_module(tmp_path: Path) -> None:
    own = {"model.layers.0.mlp.gate": (8, 64), "model.layers.0.self_attn.q_proj": (6, 64)}
    source, plain = made.write_pair(tmp_path, made.mlx(4, 64, "BF16", own))
    pack_checkpoint(source, tmp_path / "pack", SAME)
    model, truth = PackedModel.open(tmp_path / "pack"), plain_tensors(plain)
    for path, (bits, _) in own.items():
        tensor = model.manifest.tensors[path.removeprefix("model.")]
        assert isinstance(tensor, fmt.Matrix)
        assert tensor.format.name == f"affine{bits}_bf16_g64"
        same_bits(resident(model, path.removeprefix("model.")), truth[f"{path}.weight"])


def test_permuted_groups_are_converted(tmp_path: Path) -> None:
    source, plain = made.write_pair(tmp_path, made.gptq(4, 32, sym=True, desc_act=True))
    packs = []
    for path in (source, plain):
        pack_checkpoint(path, tmp_path / f"{path.name}.pack", SAME)
        packs.append((tmp_path / f"{path.name}.pack" / "experts-000.safetensors").read_bytes())
    assert packs[0] == packs[1]


def test_an_order_that_the_config_denies_is_refused(tmp_path: Path) -> None:
    method = made.gptq(4, 32, sym=True, desc_act=True)
    lying = {**method.config["quantization_config"], "desc_act": False}
    source, _ = made.write_pair(tmp_path, Quantiser({"quantization_config": lying}, method.one))
    with pytest.raises(CheckpointError, match="grouped in another order"):
        pack_checkpoint(source, tmp_path / "pack", SAME)


def damage(source: Path, change: dict[str, Any]) -> None:
    """Change the first quantization entry of a config."""
    config = json.loads((source / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        if key in config:
            config[key] |= change
    (source / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (made.mlx(4, 64, "BF16"), {"bits": 7}),
        (made.mlx(4, 64, "BF16"), {"bits": 3}),
        (made.mlx(4, 64, "BF16"), {"group_size": 32}),
        (made.mlx(4, 64, "BF16"), {"mode": "mxfp8"}),
        (made.gptq(4, 64, sym=True), {"bits": 1}),
        (made.gptq(4, 64, sym=True), {"group_size": 48}),
        (made.gptq(4, 64, sym=True), {"checkpoint_format": "marlin"}),
        (made.gptq(4, 64, sym=False), {"sym": True}),
        (made.awq(32), {"version": "gemv"}),
        (made.awq(32), {"group_size": "many"}),
        (made.compressed(4, 32, sym=True, dtype="BF16"), {"format": "marlin-24"}),
        (made.compressed(4, 32, sym=True, dtype="BF16"), {"config_groups": {}}),
        (made.two_level(divides=False), {"quant_algo": "FP8"}),
    ],
    ids=lambda value: "" if isinstance(value, Quantiser) else next(iter(value)),
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, method: Quantiser, change: dict[str, Any]
) -> None:
    source, _ = made.write_pair(tmp_path, method)
    damage(source, change)
    with pytest.raises((ConfigError, CheckpointError)):
        pack_checkpoint(source, tmp_path / "pack", SAME)


@cases
def test_a_missing_or_renamed_part_is_refused(tmp_path: Path, name: str) -> None:
    source, _ = made.write_pair(tmp_path, CASES[name][0])
    file = source / "model.safetensors"
    raw = file.read_bytes()
    for part in (b"o_proj.scales", b"o_proj.weight_scale", b"o_proj.qzeros"):
        if part + b'"' in raw:
            file.write_bytes(raw.replace(part + b'"', part[:-1] + b'x"'))
            break
    with pytest.raises(FlashMoeError):
        pack_checkpoint(source, tmp_path / "pack", SAME)


def test_a_scale_that_is_not_finite_is_named(tmp_path: Path) -> None:
    method = made.mlx(4, 64, "F16")

    def one(*args: Any) -> tuple[made.Stored, Floats]:
        tensors, w = method.one(*args)
        if args[1].endswith("o_proj"):
            tensors["scales"][1][3, 0] = np.inf
        return tensors, w

    source, _ = made.write_pair(tmp_path, Quantiser(method.config, one, True, True))
    with pytest.raises(NonFiniteError, match=r"o_proj\.weight: .*at row 3"):
        pack_checkpoint(source, tmp_path / "pack", SAME)
