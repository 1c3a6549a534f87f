"""Tensor names of GGUF files and the names that the same tensors have on the hub."""

from __future__ import annotations

import re

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# Before the ".weight" or ".bias" of a tensor of a layer.
_MODULES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_EXACT = {
    "attn_sinks.weight": "self_attn.sinks",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
}
_ROUTED = re.compile(r"ffn_(gate|up|down)_exps\.(weight|bias)")
_SHARED = re.compile(r"ffn_(gate|up|down)_shexp\.weight")
_OF_FAMILY = {
    "gpt_oss": {"mlp.gate.": "mlp.router."},
    "minimax_m2": {"mlp.gate.e_score": "mlp.e_score"},
}
_ONE_SHARED = ("qwen3_next", "qwen3_5_moe_text")


def hub_name(name: str, model_type: str, layers: int) -> str:
    """The name on the hub; what no table knows keeps its name after "gguf:".

    A stack of expert matrices is called "...experts.gate_proj.weight", without a number. Layers
    beyond `layers` predict further tokens; they are left out under "mtp." or their number.
    """
    if name in _TOP:
        return _TOP[name]
    match = _LAYER.fullmatch(name)
    if match is None:
        return f"gguf:{name}"
    layer, rest = int(match[1]), match[2]
    if layer >= layers:
        return (
            f"mtp.{layer}.{rest}" if model_type in _ONE_SHARED else f"model.layers.{layer}.{rest}"
        )
    known = _within_layer(rest, model_type)
    return f"gguf:{name}" if known is None else f"model.layers.{layer}.{known}"


def _within_layer(rest: str, model_type: str) -> str | None:
    if found := _ROUTED.fullmatch(rest):
        return f"mlp.experts.{found[1]}_proj.{found[2]}"
    if found := _SHARED.fullmatch(rest):
        shared = "shared_expert" if model_type in _ONE_SHARED else "shared_experts"
        return f"mlp.{shared}.{found[1]}_proj.weight"
    if rest == "ffn_gate_up_exps.weight":
        return "mlp.experts.gate_up_proj"
    module, _, suffix = rest.rpartition(".")
    known = _EXACT.get(rest) or (f"{_MODULES[module]}.{suffix}" if module in _MODULES else None)
    for part, other in _OF_FAMILY.get(model_type, {}).items():
        known = known and known.replace(part, other)
    return known
