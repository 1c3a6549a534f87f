"""Tiny random checkpoints of every layout that is found in the wild, written with NumPy alone.

The weights depend on config and seed only: in any layout, a model packs to the same bytes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_deepseek import mlp_shapes
from tests.support.tiny_families import MORE_CONFIGS, as_published, own_shapes

Floats = NDArray[np.float32]
Tensors = dict[str, Floats]
DType = Literal["BF16", "F16", "F32"]

QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 100,
}
QWEN3_5_MOE: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "attention_bias": False,
    "dtype": "bfloat16",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 256,
    "model_type": "qwen3_5_moe_text",
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "partial_rotary_factor": 0.25,
        "rope_theta": 1e7,
        "rope_type": "default",
    },
    "shared_expert_intermediate_size": 128,
    "tie_word_embeddings": True,
    "vocab_size": 100,
}
QWEN3_NEXT: dict[str, Any] = {
    **{key: value for key, value in QWEN3_5_MOE.items() if key != "layer_types"},
    "architectures": ["Qwen3NextForCausalLM"],
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "intermediate_size": 128,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initial_context_length": 128,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 256,
    "model_type": "gpt_oss",
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 8.0,
        "beta_slow": 1.0,
        "factor": 2.0,
        "original_max_position_embeddings": 128,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 20,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 100,
}
SMALLEST_F16 = 2.0**-14
CONFIGS = {
    "qwen3_moe": QWEN3_MOE,
    "qwen3_next": QWEN3_NEXT,
    "gpt_oss": GPT_OSS,
    "qwen3_5_moe": QWEN3_5_MOE,
    **MORE_CONFIGS,
}


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is written: everything but the model itself.

    prefix: "text" ("model.layers..."), "nested" ("model.language_model.layers...", with vision
    tensors and a text_config) or "outer" ("language_model.model.layers...", likewise).
    """

    fused: bool = False
    shards: int = 1
    prefix: Literal["text", "nested", "outer"] = "text"
    dtype: DType = "BF16"


def write_checkpoint(
    path: Path,
    family: str,
    layout: Layout | None = None,
    *,
    seed: int = 0,
    change: Callable[[Tensors], None] | None = None,
    **overrides: Any,
) -> Path:
    """Writes a checkpoint directory; returns it.

    Args:
        change: edits the canonical per-expert tensors, e.g. to damage them.
        overrides: config keys.
    """
    layout = layout or Layout()
    config = {**CONFIGS[family], **overrides}
    tensors = make_tensors(config, seed)
    if change is not None:
        change(tensors)
    if layout.fused:
        tensors = fuse(tensors, paired=config["model_type"] == "gpt_oss")
    tensors = {as_published(name, config["model_type"]): w for name, w in tensors.items()}
    path.mkdir(parents=True)
    write_texts(path, _nest(config) if layout.prefix != "text" else config)
    _write_shards(path, _prefixed(tensors, layout.prefix), layout)
    return path


def make_tensors(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """Random weights, exact in bf16 and f16, under canonical per-expert names."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in _shapes(config).items():
        w = round_to_bf16(rng.standard_normal(shape, np.float32) * np.float32(0.05))
        tensors[name] = np.where(np.abs(w) < SMALLEST_F16, np.float32(0), w)
    return tensors


def fuse(tensors: Tensors, paired: bool = False) -> Tensors:
    """Per-expert tensors -> gate_up_proj [E, 2 I, H] and down_proj [E, H, I] per layer.

    paired: [E, H, 2 I] with gate and up in turn, and [E, I, H], as gpt-oss has them.
    """
    single = re.compile(r"\.mlp\.experts\.\d")
    result = {name: w for name, w in tensors.items() if not single.search(name)}
    layers = sorted({n.split(".experts.")[0] for n in tensors if single.search(n)})
    for stem in (f"{layer}.experts" for layer in layers):
        count = sum(n.startswith(f"{stem}.") and n.endswith("down_proj.weight") for n in tensors)
        part = {
            name: np.stack([tensors[f"{stem}.{e}.{name}_proj.weight"] for e in range(count)])
            for name in ("gate", "up", "down")
        }
        if paired:
            turns = np.stack([part["gate"], part["up"]], axis=2)
            part["down"] = part["down"].swapaxes(1, 2)
            gate_up = turns.reshape(count, -1, turns.shape[-1]).swapaxes(1, 2)
        else:
            gate_up = np.concatenate([part["gate"], part["up"]], axis=1)
        result[f"{stem}.gate_up_proj"], result[f"{stem}.down_proj"] = gate_up, part["down"]
    return result


def write_safetensors(
    path: Path, tensors: Tensors, dtype: DType = "BF16", bytes_are: str = "U8"
) -> None:
    """A safetensors file of one element type, another for bytes, tensors in the given order."""
    blobs = [_to_bytes(w, dtype) for w in tensors.values()]
    entries, position = {}, 0
    for (name, w), blob in zip(tensors.items(), blobs, strict=True):
        offsets = [position, position + len(blob)]
        kind = bytes_are if w.dtype == np.uint8 else dtype
        entries[name] = {"dtype": kind, "shape": list(w.shape), "data_offsets": offsets}
        position = offsets[1]
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"".join(blobs))


def round_to_bf16(w: Floats) -> Floats:
    """Each element rounded to the nearest bfloat16, ties away: written unlike flashmoe.quant."""
    return ((w.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def _to_bytes(w: Floats | NDArray[np.uint8], dtype: DType) -> bytes:
    if w.dtype == np.uint8:
        return w.tobytes()
    if dtype == "BF16":
        return np.ascontiguousarray(w).view("<u2").reshape(-1, 2)[:, 1].tobytes()
    return w.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer, layer_type in enumerate(layer_types(config)):
        own = config["model_type"] in MORE_CONFIGS
        found = own_shapes(config, layer) if own else _layer_shapes(config, layer_type)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in found.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """The kind of attention of each layer."""
    given: list[str] | None = config.get("layer_types")
    interval = config.get("full_attention_interval", 1)
    layers = range(config["num_hidden_layers"])
    return given or ["linear_attention" if (i + 1) % interval else "full_attention" for i in layers]


def _layer_shapes(config: Mapping[str, Any], layer_type: str) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    experts = config.get("num_experts") or config["num_local_experts"]
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if config["model_type"] == "gpt_oss":
        shapes |= _gpt_oss_shapes(config, inner, experts)
    else:
        shapes["mlp.gate.weight"] = (experts, hidden)
    shapes |= _linear_shapes(config) if "linear" in layer_type else _attention_shapes(config)
    if "shared_expert_intermediate_size" in config:
        shared = config["shared_expert_intermediate_size"]
        shapes |= mlp_shapes("mlp.shared_expert", hidden, shared)
        shapes["mlp.shared_expert_gate.weight"] = (1, hidden)
    for expert in range(experts):
        shapes |= mlp_shapes(f"mlp.experts.{expert}", hidden, inner)
    return shapes


def _gpt_oss_shapes(
    config: Mapping[str, Any], inner: int, experts: int
) -> dict[str, tuple[int, ...]]:
    """What it has beyond the others."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    return {
        "self_attn.q_proj.bias": (q,),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.bias": (hidden,),
        "self_attn.sinks": (config["num_attention_heads"],),
        "mlp.router.weight": (experts, hidden),
        "mlp.router.bias": (experts,),
        "mlp.experts.gate_up_proj_bias": (experts, 2 * inner),
        "mlp.experts.down_proj_bias": (experts, hidden),
    }


def _attention_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, dim = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    gated = 2 if "linear_num_key_heads" in config else 1
    norms = {"self_attn.q_norm.weight": (dim,), "self_attn.k_norm.weight": (dim,)}
    return {
        "self_attn.q_proj.weight": (gated * q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        **(norms if config["model_type"] != "gpt_oss" else {}),
    }


def _linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    inputs = {
        "qkvz": 2 * keys + 2 * values,
        "ba": 2 * heads,
    }
    if config["model_type"] != "qwen3_next":
        inputs = {"qkv": 2 * keys + values, "z": values, "b": heads, "a": heads}
    return {
        **{f"linear_attn.in_proj_{n}.weight": (rows, hidden) for n, rows in inputs.items()},
        "linear_attn.out_proj.weight": (hidden, values),
        "linear_attn.conv1d.weight": (
            2 * keys + values,
            1,
            config["linear_conv_kernel_dim"],
        ),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (config["linear_value_head_dim"],),
    }


def _prefixed(tensors: Tensors, prefix: str) -> Tensors:
    if prefix == "text":
        return tensors
    inner = "model.language_model." if prefix == "nested" else "language_model.model."
    head = "" if prefix == "nested" else "language_model."
    renamed = {
        inner + n.removeprefix("model.") if n.startswith("model.") else head + n: w
        for n, w in tensors.items()
    }
    vision = "model.visual." if prefix == "nested" else "visual."
    extra = {f"{vision}patch_embed.proj.weight": (3, 5), "mtp.fc.weight": (2, 4)}
    return renamed | {name: np.ones(shape, np.float32) for name, shape in extra.items()}


def _nest(config: dict[str, Any]) -> dict[str, Any]:
    text = {k: v for k, v in config.items() if k not in ("architectures", "tie_word_embeddings")}
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "vision_config": {"depth": 1},
        "image_token_id": 90,
        "tie_word_embeddings": config["tie_word_embeddings"],
    }


def write_texts(path: Path, config: Mapping[str, Any]) -> None:
    """config.json and small tokenizer files."""
    texts: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": [2, 0]},
        "tokenizer.json": {"version": "1.0"},
        "tokenizer_config.json": {"eos_token": "<|im_end|>"},
    }
    for name, value in texts.items():
        (path / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_shards(path: Path, tensors: Tensors, layout: Layout) -> None:
    if layout.shards == 1:
        write_safetensors(path / "model.safetensors", tensors, layout.dtype)
        return
    weight_map = {}
    for shard in range(layout.shards):
        file = f"model-{shard + 1:05d}-of-{layout.shards:05d}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[shard :: layout.shards]}
        write_safetensors(path / file, part, layout.dtype)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
