"""Which types llama.cpp's mixes give to which matrices of a model with experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.gguf_files import write_gguf
from tests.support.tiny_checkpoints import Tensors

LAYERS = 8
# Sizes that 256 divides, as the K formats want them; those of the heads too.
SIZES = {
    "hidden_size": 256,
    "moe_intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def _more_bits(layer: int) -> bool:
    """llama.cpp's use_more_bits: the first and the last eighth, and every third between."""
    eighth = LAYERS // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def _recipe(
    base: str, down: Callable[[int], str], v: Callable[[int], str], out: str
) -> Mapping[str, str]:
    """Types by pattern of names. out: of attn_output."""
    types = {}
    for layer in range(LAYERS):
        types[rf"blk\.{layer}\.ffn_down_exps\.weight"] = down(layer)
        types[rf"blk\.{layer}\.attn_v\.weight"] = v(layer)
    return types | {
        r"blk\.\d+\.attn_output\.weight": out,
        r"blk\.\d+\.(attn_[qk]|ffn_(gate|up|gate_up)_exps|attn_qkv)\.weight": base,
        r"output\.weight": "Q6_K",
        r"token_embd\.weight": base,
    }


RECIPES: Mapping[str, Mapping[str, str]] = {
    "Q4_K_M": _recipe(
        "Q4_K",
        lambda i: "Q6_K" if _more_bits(i) else "Q4_K",
        lambda i: "Q6_K" if _more_bits(i) else "Q4_K",
        "Q4_K",
    ),
    "Q3_K_M": _recipe(
        "Q3_K",
        lambda i: "Q5_K" if i < 1 else "Q4_K",
        lambda i: "Q5_K" if i < 2 else "Q4_K",
        "Q4_K",
    ),
    "IQ4_XS": _recipe(
        "IQ4_XS", lambda i: "Q5_K" if i < LAYERS // 8 else "IQ4_XS", lambda i: "Q5_K", "IQ4_XS"
    ),
    # As mixes made by hand: another format in single layers, for gate and up too.
    "UD": {
        r"blk\.0\.ffn_\w+_exps\.weight": "Q8_0",
        r"blk\.3\.ffn_\w+_exps\.weight": "IQ4_NL",
        **_recipe("Q2_K", lambda i: ("Q3_K", "Q4_K", "Q5_K")[i % 3], lambda i: "Q8_0", "Q5_K"),
    },
}


def write_mix(path: Path, name: str, *, fused: bool = False) -> Tensors:
    """Writes a tiny Qwen3-MoE in a mix; returns its weights, of which those of experts count."""
    sizes: dict[str, Any] = SIZES
    return write_gguf(path, "qwen3_moe", recipe=RECIPES[name], fused=fused, **sizes)
