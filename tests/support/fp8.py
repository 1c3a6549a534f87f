"""FP8 tensors as DeepSeek-V3 publishes them, and what they mean, one code at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_checkpoints import Tensors, make_tensors, write_safetensors, write_texts
from tests.support.tiny_deepseek import DEEPSEEK_V3

# More than one block of scales in either direction, the last ones not whole.
CONFIG: dict[str, Any] = {**DEEPSEEK_V3, "hidden_size": 192, "moe_intermediate_size": 160}
QUANTIZED = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def value(code: int) -> float:
    """What one code means."""
    exponent, mantissa = code >> 3 & 15, code & 7
    size = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if code & 128 else size


VALUES = np.array([value(code) for code in range(256)], dtype=np.float32)


def meaning(codes: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights [rows, cols], one product each."""
    rows, cols = np.indices(codes.shape)
    return VALUES[codes] * scales[rows // 128, cols // 128]


def write_pair(root: Path) -> tuple[Path, Path]:
    """The same tiny DeepSeek-V3 twice: with FP8 projections, and in float32."""
    rng = np.random.default_rng(0)
    plain: Tensors = make_tensors(CONFIG)
    stored: dict[str, Any] = dict(plain)
    for name, w in plain.items():
        if "_proj" not in name:
            continue
        codes = rng.integers(0, 127, w.shape, dtype=np.uint8) | rng.choice([0, 128], w.shape)
        blocks = tuple(-(-size // 128) for size in w.shape)
        scales = rng.uniform(1e-4, 3e-4, blocks).astype(np.float32)
        stored |= {name: codes.astype(np.uint8), f"{name}_scale_inv": scales}
        plain[name] = meaning(stored[name], scales)
    quantized = {**CONFIG, "quantization_config": QUANTIZED}
    return _write(root / "fp8", stored, quantized), _write(root / "plain", plain, CONFIG)


def _write(path: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    write_texts(path, config)
    write_safetensors(path / "model.safetensors", tensors, "F32", bytes_are="F8_E4M3")
    return path
