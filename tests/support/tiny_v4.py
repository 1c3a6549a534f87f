"""A tiny DeepSeek-V4 as it is published: names without a prefix, FP4 experts, FP8 projections with
E8M0 scales, and the config's older keys; and the same numbers as transformers writes them."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.checkpoint.directory import Checkpoint
from flashmoe.checkpoint.safetensors import to_float32
from tests.support import fp8, mxfp4, oracle

# Published checkpoints have these in FP8.
_FP8 = re.compile(r".*\.(wq_a|wq_b|wkv|wo_a|wo_b|shared_experts\.w[123])\.weight")
_EXPERT = re.compile(r".*\.ffn\.experts\.\d+\.w[123]\.weight")
Stored = dict[str, tuple[str, NDArray[Any]]]
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "architectures": ["DeepseekV4ForCausalLM"],
    "compress_ratios": [0, 4, 128, 0],
    "compress_rope_theta": 160000,
    "expert_dtype": "fp4",
    "hc_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 128,
    "index_head_dim": 64,
    "index_n_heads": 32,
    "index_topk": 12,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hash_layers": 1,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 16,
    "quantization_config": {**fp8.QUANTIZED, "scale_fmt": "ue8m0"},
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 24,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "vocab_size": 512,
}


def write_pair(root: Path) -> tuple[Path, Path]:
    """The same weights as published, and with all that they mean in bf16 (transformers' form)."""
    kinds = ["sliding", "compressed_sparse", "heavily_compressed"]
    tiny = oracle.tiny_model(
        "deepseek_v4",
        num_hidden_layers=3,
        layer_types=[f"{kind}_attention" for kind in kinds],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        mlp_layer_types=["hash_moe", "moe", "moe"],
    )
    source = oracle.save(tiny, root / "made", fused=False)
    plain, stored = _tensors(source), Stored()
    rng = np.random.default_rng(0)
    for name in list(plain):
        published = published_name(name)
        if _EXPERT.fullmatch(name):
            plain[name] = "BF16", _fp4(rng, stored, published, plain[name][1].shape)
        elif _FP8.fullmatch(name) and "compressor" not in name:
            plain[name] = "BF16", _fp8(rng, stored, published, plain[name][1].shape)
        else:
            mixing = published.partition(".hc_")[1] or published.startswith("hc_")
            stored[published] = ("F32", plain[name][1]) if mixing else plain[name]
    stored["mtp.0.norm.weight"] = "BF16", np.ones(128, np.float32)
    config = json.loads((source / "config.json").read_text())
    return _write(root / "published", stored, CONFIG), _write(root / "plain", plain, config)


def published_name(name: str) -> str:
    """Of a name that transformers writes."""
    name = name.removeprefix("model.").replace("embed_tokens", "embed")
    name = name.replace(".attn.norm.", ".attn.kv_norm.")
    return name.replace("hc_head.hc_", "hc_head_")


def _fp4(
    rng: np.random.Generator, stored: Stored, name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    blocks, scales = mxfp4.random_mxfp4(rng, *shape)
    stored[name] = "I8", blocks.reshape(shape[0], -1)
    stored[name.replace(".weight", ".scale")] = "F8_E8M0", scales
    return mxfp4.meaning(blocks, scales)


def _fp8(
    rng: np.random.Generator, stored: Stored, name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    codes = rng.integers(0, 96, shape, dtype=np.uint8)
    codes |= rng.choice(np.array([0, 128], np.uint8), shape)
    exponents = rng.integers(120, 124, [-(-size // 128) for size in shape], dtype=np.uint8)
    stored[name] = "F8_E4M3", codes
    stored[name.replace(".weight", ".scale")] = "F8_E8M0", exponents
    return fp8.meaning(codes, (2.0 ** (exponents.astype(np.float64) - 127)).astype(np.float32))


def _tensors(source: Path) -> Stored:
    """Of a checkpoint: dtype and values; integers as they are."""
    found: Stored = {}
    with Checkpoint(source) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            raw = checkpoint.read(tensor, 0, tensor.nbytes)
            values = raw.view("<i8") if tensor.dtype == "I64" else to_float32(raw, tensor.dtype)
            found[name] = tensor.dtype, values.reshape(tensor.shape)
    return found


def _write(path: Path, tensors: Stored, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    blobs = [_bytes(dtype, values) for dtype, values in tensors.values()]
    entries, position = {}, 0
    for (name, (dtype, values)), blob in zip(tensors.items(), blobs, strict=True):
        end = position + len(blob)
        shape = list(values.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries).encode()
    data = struct.pack("<Q", len(header)) + header + b"".join(blobs)
    (path / "model.safetensors").write_bytes(data)
    return path


def _bytes(dtype: str, values: NDArray[Any]) -> bytes:
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4") >> 16
        return bits.astype("<u2").tobytes()
    return np.ascontiguousarray(values).tobytes()
