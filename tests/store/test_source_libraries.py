"""Matrices quantised by the formats' own libraries, where those are installed: kept to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.quant.layout import Floats
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import PackedModel
from tests.store.support import decode_record, read_record
from tests.store.test_quantised_sources import SAME, plain_tensors
from tests.support import quantised as made
from tests.support.quantised import Quantiser, Stored


def expect_kept(root: Path, method: Quantiser, expected: str) -> None:
    source, plain = made.write_pair(root, method)
    pack_checkpoint(source, root / "pack", SAME)
    model, truth = PackedModel.open(root / "pack"), plain_tensors(plain)
    assert model.manifest.experts.down.name == expected
    parts = decode_record(model.manifest.experts, read_record(model, 0, 3))
    for part, w in zip(("gate", "up", "down"), parts, strict=True):
        expected_w = truth[f"model.layers.0.mlp.experts.3.{part}_proj.weight"]
        np.testing.assert_array_equal(w, expected_w)


def normal(rng: np.random.Generator, rows: int, cols: int) -> Floats:
    return (rng.standard_normal((rows, cols)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(tmp_path: Path, bits: int) -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        w = mx.array(normal(rng, rows, cols)).astype(mx.float16)
        codes, scales, biases = mx.quantize(w, group_size=64, bits=bits)
        s, b = scales.astype(mx.float32), biases.astype(mx.float32)
        meant = mx.dequantize(codes, s, b, group_size=64, bits=bits)
        tensors: Stored = {
            "weight": ("U32", np.array(codes)),
            "scales": ("F16", np.array(scales)),
            "biases": ("F16", np.array(biases)),
        }
        return tensors, np.array(meant)

    config = {"quantization": {"group_size": 64, "bits": bits}}
    expect_kept(tmp_path, Quantiser(config, one, True, True), f"affine{bits}_f16_g64")


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (4, False), (8, True), (8, False)])
def test_compressed_tensors(tmp_path: Path, bits: int, symmetric: bool) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=32
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        half = 2 ** (bits - 1)
        scale = torch.from_numpy(rng.uniform(0.01, 0.02, (rows, cols // 32)).astype(np.float32))
        zero = torch.zeros(scale.shape, dtype=torch.int8)
        if not symmetric:
            zero = torch.from_numpy(rng.integers(-half, half, scale.shape).astype(np.int8))
        state: dict[str, Any] = {
            "weight": torch.from_numpy(normal(rng, rows, cols)),
            "weight_scale": scale.half().float(),
            "weight_zero_point": zero,
        }
        packed = PackedQuantizationCompressor.compress(state, scheme)
        meant = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
        kinds = {"weight_packed": "I32", "weight_shape": "I64", "weight_zero_point": "I32"}
        tensors: Stored = {
            name: (kinds[name], value.numpy()) for name, value in packed.items() if name in kinds
        }
        tensors["weight_scale"] = ("F16", packed["weight_scale"].half().numpy())
        return tensors, meant.float().numpy()

    config = made.compressed(bits, 32, symmetric, "F16").config
    name = f"{'affine' if symmetric else 'zero'}{bits}_f16_g32"
    expect_kept(tmp_path, Quantiser(config, one), name)
