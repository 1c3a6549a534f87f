"""Tiny quantised checkpoints of each method, written from the formats' descriptions bit by bit.

Nothing here is shared with the readers: codes are placed one at a time.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_checkpoints import CONFIGS, make_tensors, round_to_bf16, write_texts

Floats = NDArray[np.float32]
Array = NDArray[Any]
Stored = dict[str, tuple[str, Array]]
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
BITS_OF_TYPE = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class Quantiser:
    """A method: its config entry, and one matrix as tensors and as the weights that they mean.

    one: (rng, module path, rows, cols) -> (tensors by name without the path, float32 weights).
    quantised: which modules are; stacked: experts under switch_mlp, in tensors of 3 dimensions.
    """

    config: dict[str, Any]
    one: Callable[[np.random.Generator, str, int, int], tuple[Stored, Floats]]
    every: bool = False
    stacked: bool = False


def bit_words(codes: Array, bits: int) -> NDArray[np.uint32]:
    """codes [n, m] -> words of 32 bits [n, m * bits / 32 rounded up], code k at bit bits * k."""
    n, m = codes.shape
    words = np.zeros((n, -(-m * bits // 32)), np.uint32)
    for k in range(m):
        for b in range(bits):
            at = bits * k + b
            words[:, at // 32] |= ((codes[:, k].astype(np.uint32) >> b) & 1) << (at % 32)
    return words


def scales_of(rng: np.random.Generator, dtype: str, *shape: int) -> tuple[Array, Floats]:
    """Random scales of either sign: as stored, and as float32."""
    values = (rng.uniform(0.004, 0.02, shape) * rng.choice([-1, 1], shape)).astype(np.float32)
    if dtype == "BF16":
        rounded = round_to_bf16(values)
        return (rounded.view(np.uint32) >> 16).astype("<u2"), rounded
    stored = values.astype(BITS_OF_TYPE[dtype])
    return stored, stored.astype(np.float32)


def mlx(
    bits: int, group: int, dtype: str, overrides: Mapping[str, tuple[int, int]] | None = None
) -> Quantiser:
    """overrides: bits and group by module path, that of a stack for experts."""
    chosen = overrides or {}
    base = bits, group

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        n, group = chosen.get(re.sub(r"\.experts\.\d+\.", ".switch_mlp.", path), base)
        codes = rng.integers(0, 2**n, (rows, cols))
        (scale, s), (bias, b) = (scales_of(rng, dtype, rows, cols // group) for _ in range(2))
        w = codes.astype(np.float32) * s.repeat(group, 1) + b.repeat(group, 1)
        tensors = {"weight": ("U32", bit_words(codes, n)), "scales": (dtype, scale)}
        return tensors | {"biases": (dtype, bias)}, w

    own = {path: {"bits": n, "group_size": g} for path, (n, g) in chosen.items()}
    config = {"group_size": group, "bits": bits, "mode": "affine", **own}
    return Quantiser(
        {"quantization": config, "quantization_config": config}, one, every=True, stacked=True
    )


def mlx_fp4(mode: str) -> Quantiser:
    """mxfp4 or nvfp4."""
    group = 32 if mode == "mxfp4" else 16

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        codes = rng.integers(0, 16, (rows, cols))
        low, high = (118, 122) if mode == "mxfp4" else (1, 40)
        scale = rng.integers(low, high, (rows, cols // group)).astype(np.uint8)
        power = np.ldexp(np.float32(1), scale.astype(np.int32) - 127)
        s = power if mode == "mxfp4" else e4m3(scale)
        w = np.array(FP4, np.float32)[codes] * s.repeat(group, 1)
        return {"weight": ("U32", bit_words(codes, 4)), "scales": ("U8", scale)}, w

    config = {"group_size": group, "bits": 4, "mode": mode}
    return Quantiser({"quantization": config}, one, every=True, stacked=True)


def e4m3(codes: Array) -> Floats:
    """What non-negative E4M3 codes mean."""
    exponent, mantissa = codes.astype(int) >> 3, codes.astype(int) & 7
    small = mantissa / 8 * 2.0**-6
    large = (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    return np.where(exponent == 0, small, large).astype(np.float32)


def gptq(
    bits: int, group: int, sym: bool, version: int = 1, desc_act: bool = False, dtype: str = "F16"
) -> Quantiser:
    """qweight packed down the inputs, qzeros along the outputs; version 1 stores zeros minus 1."""

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        groups = cols // group
        codes = rng.integers(0, 2**bits, (rows, cols))
        low = 1 if version == 1 else 0
        zero = rng.integers(low, 2**bits, (rows, groups))
        if sym:
            zero[:] = 2 ** (bits - 1)
        stored, s = scales_of(rng, dtype, rows, groups)
        index = np.arange(cols) // group
        if desc_act:
            index = rng.permutation(index)
        w = (codes - zero[:, index]).astype(np.float32) * s[:, index]
        shift = 1 if version == 1 else 0
        tensors = {
            "qweight": ("I32", bit_words(codes, bits).T),
            "qzeros": ("I32", bit_words((zero - shift).T, bits)),
            "scales": (dtype, stored.T),
            "g_idx": ("I32", index.astype("<i4")),
        }
        return tensors, w

    config: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": group}
    config |= {
        "sym": sym,
        "desc_act": desc_act,
        "checkpoint_format": ("gptq", "gptq_v2")[version - 1],
    }
    return Quantiser({"quantization_config": config}, one)


def awq(group: int) -> Quantiser:
    """Nibble i of word c is column 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(codes: Array) -> Array:
        eights = codes.reshape(len(codes), -1, 8)[..., order]
        return bit_words(eights.reshape(len(codes), -1), 4)

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        groups = cols // group
        codes, zero = rng.integers(0, 16, (cols, rows)), rng.integers(0, 16, (groups, rows))
        stored, s = scales_of(rng, "F16", groups, rows)
        w = (codes - zero.repeat(group, 0)).astype(np.float32) * s.repeat(group, 0)
        parts: Stored = {"qweight": ("I32", pack(codes)), "qzeros": ("I32", pack(zero))}
        return parts | {"scales": ("F16", stored)}, np.ascontiguousarray(w.T)

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    return Quantiser({"quantization_config": config | {"zero_point": True}}, one)


def compressed(bits: int, group: int, sym: bool, dtype: str, packed: bool = True) -> Quantiser:
    """compressed-tensors: codes and zeros are stored plus 2^(bits - 1). group 0: one per row."""

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        size, half = group or cols, 2 ** (bits - 1)
        codes = rng.integers(-half, half, (rows, cols))
        zero = np.zeros((rows, cols // size), int)
        stored, s = scales_of(rng, dtype, rows, cols // size)
        parts: Stored = {"weight_scale": (dtype, stored)}
        if not sym:
            zero = rng.integers(-half, half, zero.shape)
            rolled = bit_words((zero + half).T, bits).T if packed else zero.astype(np.int8)
            parts["weight_zero_point"] = ("I32" if packed else "I8", rolled)
        if packed:
            parts["weight_packed"] = ("I32", bit_words(codes + half, bits))
            parts["weight_shape"] = ("I64", np.array([rows, cols], "<i8"))
        else:
            parts["weight"] = ("I8", codes.astype(np.int8))
        return parts, (codes - zero.repeat(size, 1)).astype(np.float32) * s.repeat(size, 1)

    weights = {"num_bits": bits, "type": "int", "symmetric": sym, "group_size": group or None}
    weights["strategy"] = "group" if group else "channel"
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if packed else "int-quantized",
        "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }
    return Quantiser({"quantization_config": config}, one)


def two_level(divides: bool) -> Quantiser:
    """NVFP4 of compressed-tensors (the scale of the tensor divides) or of ModelOpt (multiplies)."""

    def one(rng: np.random.Generator, path: str, rows: int, cols: int) -> tuple[Stored, Floats]:
        codes = rng.integers(0, 16, (rows, cols))
        scale = rng.integers(1, 120, (rows, cols // 16)).astype(np.uint8)
        whole = np.float32(rng.uniform(5e3, 9e3) if divides else rng.uniform(1e-4, 2e-4))
        s = e4m3(scale) / whole if divides else e4m3(scale) * whole
        w = np.array(FP4, np.float32)[codes] * s.repeat(16, 1)
        data = bit_words(codes, 4).view(np.uint8)
        named = ("weight_packed", "weight_global_scale", "input_global_scale")
        weight, top, inputs = named if divides else ("weight", "weight_scale_2", "input_scale")
        parts: Stored = {weight: ("U8", data), "weight_scale": ("F8_E4M3", scale)}
        return parts | {top: ("F32", np.array(whole)), inputs: ("F32", np.array(whole))}, w

    weights = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}
    config: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    if divides:
        groups = {"group_0": {"weights": weights, "targets": ["Linear"]}}
        config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
        config["config_groups"] = groups
    return Quantiser({"quantization_config": config}, one)


def write_pair(root: Path, method: Quantiser, **changes: Any) -> tuple[Path, Path]:
    """The same tiny Qwen3-MoE twice: quantised, and in float32 with what that means."""
    config = {**CONFIGS["qwen3_moe"], "num_hidden_layers": 1, **changes}
    rng = np.random.default_rng(0)
    plain = make_tensors(config)
    stored: Stored = {}
    for name, w in plain.items():
        path = name.removesuffix(".weight")
        if w.ndim != 2 or not (method.every or "_proj" in name):
            stored[name] = ("F32", w)
            continue
        parts, plain[name] = method.one(rng, path, *w.shape)
        stored |= {f"{path}.{part}": value for part, value in parts.items()}
    if method.stacked:
        stored = _stack(stored, config["num_experts"])
    whole: Stored = {name: ("F32", w) for name, w in plain.items()}
    return (
        _write(root / "quantised", stored, {**config, **method.config}),
        _write(root / "plain", whole, config),
    )


def _stack(stored: Stored, count: int) -> Stored:
    """Experts of a projection in one tensor, as MLX has them."""
    first = [name for name in stored if ".experts.0." in name]
    kept = {name: value for name, value in stored.items() if ".experts." not in name}
    for name in first:
        parts = [stored[name.replace(".experts.0.", f".experts.{e}.")] for e in range(count)]
        joined = np.stack([array for _, array in parts])
        kept[name.replace(".experts.0.", ".switch_mlp.")] = (parts[0][0], joined)
    return kept


def _write(path: Path, tensors: Stored, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    write_texts(path, config)
    entries, data = {}, b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        span = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        data += raw
    header = json.dumps(entries).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path
