"""The GGUF twin of a synthetic model: what is in the file, as a plan that `peer` writes.

The same tensors with the same distribution as flashmoe.bench.synth makes, at the same bits: experts
Q4_0 (4.5 bits, as q4 in groups of 64), other matrices Q8_0 (8.5 bits, as q8 in groups of 64). The
router is F32, as llama.cpp wants it; ours is bf16. Slices start at multiples of a quantised block,
so weights are encoded once and the file is written as fast as the disk takes it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flashmoe.bench.compare.peer import BLOCKS, tensor_bytes
from flashmoe.bench.synth import BLOCK_WEIGHTS, SyntheticCheckpoint, byte_tokens, variance_divisor
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import UsageError

_ARCHITECTURES: Final = {"qwen3_moe": "qwen3moe"}
# llama.cpp's name for "mostly Q4_0"; it is only shown.
_FILE_TYPE: Final = 2

# Checkpoint name -> GGUF name; those of layers without "model.layers.N." and "blk.N.".
_WHOLE: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_OF_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}
_ROUTER: Final = "mlp.gate"
_OF_EXPERTS: Final = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}


@dataclass(frozen=True)
class TwinTensor:
    """A tensor of the file.

    shape: outermost first, as in NumPy. Filled with `constant`, or cut from the block of normally
    distributed weights with variance 1/divisor: one slice per start, in weights, one after another.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    constant: float | None = None
    divisor: int = 1
    starts: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes in the file, padding left out."""
        return tensor_bytes(self.format, self.shape)


def twin_tensors(checkpoint: SyntheticCheckpoint) -> list[TwinTensor]:
    """Every tensor of the twin of a synthetic checkpoint of a family that the peer knows."""
    _architecture(checkpoint.config)
    tensors, config = checkpoint.tensors, checkpoint.config
    twins = [_plain(tensors[name], new) for name, new in _WHOLE.items() if name in tensors]
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}."
        for name, new in _OF_LAYER.items():
            twins.append(_plain(tensors[f"{stem}{name}.weight"], f"blk.{layer}.{new}.weight"))
        twins.extend(_experts(tensors, layer, config["num_experts"]))
    return twins


def _plain(tensor: Tensor, name: str) -> TwinTensor:
    if len(tensor.shape) == 1:
        return TwinTensor(name, "F32", tensor.shape, constant=1.0)
    exact = tensor.name.endswith(f"{_ROUTER}.weight")
    return _sliced([tensor], name, "F32" if exact else "Q8_0", tensor.shape)


def _experts(tensors: dict[str, Tensor], layer: int, count: int) -> Iterator[TwinTensor]:
    """One tensor [experts, rows, columns] per projection."""
    for part, name in _OF_EXPERTS.items():
        stem = f"model.layers.{layer}.mlp.experts"
        own = [tensors[f"{stem}.{expert}.{part}_proj.weight"] for expert in range(count)]
        yield _sliced(own, f"blk.{layer}.{name}.weight", "Q4_0", (count, *own[0].shape))


def _sliced(sources: list[Tensor], name: str, format: str, shape: tuple[int, ...]) -> TwinTensor:
    weights = BLOCKS[format][0]
    if shape[-1] % weights:
        expected = f"a multiple of {weights}"
        raise UsageError(f"{format} has no such rows", where=name, expected=expected, got=shape)
    starts = [zlib.crc32(source.name.encode()) % BLOCK_WEIGHTS for source in sources]
    aligned = tuple(start // weights * weights for start in starts)
    return TwinTensor(name, format, shape, divisor=variance_divisor(sources[0]), starts=aligned)


def twin_plan(checkpoint: SyntheticCheckpoint, path: Path, seed: int = 0) -> dict[str, Any]:
    """The request that makes `peer` write the twin to path. Raises UsageError."""
    config = checkpoint.config
    architecture = _architecture(config)
    return {
        "path": str(path),
        "architecture": architecture,
        "integers": _integers(config, architecture),
        "numbers": {
            f"{architecture}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
            f"{architecture}.rope.freq_base": config["rope_theta"],
        },
        "tokens": byte_tokens(config["vocab_size"]),
        "block_weights": BLOCK_WEIGHTS,
        "seed": seed,
        "tensors": [asdict(tensor) for tensor in twin_tensors(checkpoint)],
    }


def _architecture(config: dict[str, Any]) -> str:
    family = config["model_type"]
    if family not in _ARCHITECTURES:
        expected = " | ".join(_ARCHITECTURES)
        raise UsageError("no twin for this family", where="--shape", expected=expected, got=family)
    return _ARCHITECTURES[family]


def _integers(config: dict[str, Any], architecture: str) -> dict[str, int]:
    own = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["moe_intermediate_size"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_count": config["num_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "vocab_size": config["vocab_size"],
    }
    named = {f"{architecture}.{key}": value for key, value in own.items()}
    return {"general.file_type": _FILE_TYPE, "general.quantization_version": 2, **named}
