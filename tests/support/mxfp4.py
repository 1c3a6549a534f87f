"""MXFP4 tensors as gpt-oss publishes them, and what they mean, one code at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_checkpoints import (
    CONFIGS,
    Tensors,
    fuse,
    make_tensors,
    write_safetensors,
    write_texts,
)

Bytes = NDArray[np.uint8]
CODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def random_mxfp4(rng: np.random.Generator, *shape: int) -> tuple[Bytes, Bytes]:
    """blocks [..., cols / 32, 16] and scales [..., cols / 32] of weights of about 0.1."""
    groups = (*shape[:-1], shape[-1] // 32)
    blocks = rng.integers(0, 256, (*groups, 16), dtype=np.uint8)
    return blocks, rng.integers(120, 125, groups, dtype=np.uint8)


def meaning(blocks: Bytes, scales: Bytes) -> NDArray[np.float32]:
    """The weights [..., cols]."""
    codes = np.stack([blocks % 16, blocks // 16], axis=-1).reshape(*scales.shape, 32)
    values = np.array(CODES)[codes] * 2.0 ** (scales.astype(np.float64)[..., None] - 127)
    return values.reshape(*scales.shape[:-1], -1).astype(np.float32)


def write_pair(root: Path, seed: int = 0) -> tuple[Path, Path]:
    """The same tiny gpt-oss twice: with MXFP4 experts, and one by one in bf16."""
    config = CONFIGS["gpt_oss"]
    plain, stored = make_tensors(config, seed), fuse(make_tensors(config, seed), paired=True)
    rng = np.random.default_rng(seed)
    for layer in range(config["num_hidden_layers"]):
        _replace(plain, stored, f"model.layers.{layer}.mlp.experts", rng)
    quantized = {**config, "quantization_config": {"quant_method": "mxfp4"}}
    return _write(root / "mxfp4", stored, quantized), _write(root / "plain", plain, config)


def _replace(plain: Tensors, stored: Tensors, stem: str, rng: np.random.Generator) -> None:
    """Random MXFP4 experts in both."""
    for name in ("gate_up_proj", "down_proj"):
        count, cols, rows = stored.pop(f"{stem}.{name}").shape
        blocks, scales = random_mxfp4(rng, count, rows, cols)
        both: dict[str, Any] = {f"{stem}.{name}_blocks": blocks, f"{stem}.{name}_scales": scales}
        stored |= both
        w = meaning(blocks, scales)
        parts = {"gate": w[:, ::2], "up": w[:, 1::2]} if name == "gate_up_proj" else {"down": w}
        for part, weights in parts.items():
            for expert in range(count):
                plain[f"{stem}.{expert}.{part}_proj.weight"] = weights[expert]


def _write(path: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    write_texts(path, config)
    write_safetensors(path / "model.safetensors", tensors)
    return path
