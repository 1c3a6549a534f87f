"""GGUF files of tiny checkpoints, written with the gguf package as llama.cpp's converter does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.support.blocks import BY_NAME, random_runs
from tests.support.tiny_checkpoints import CONFIGS, Floats, Tensors, make_tensors

Kind = gguf.GGMLQuantizationType
ARCH = {
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_5_moe": "qwen35moe",
    "gpt_oss": "gpt-oss",
    "deepseek_v3": "deepseek2",
    "glm4_moe": "glm4moe",
    "minimax_m2": "minimax-m2",
    "mixtral": "llama",
    "olmoe": "olmoe",
}
HYBRID = ("qwen3_next", "qwen3_5_moe")
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.sinks": "attn_sinks.weight",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
}


def write_gguf(
    path: Path,
    family: str,
    experts: str = "F32",
    *,
    others: Mapping[int, str] | None = None,
    recipe: Mapping[str, str] | None = None,
    fused: bool = False,
    extra: Mapping[str, Any] | None = None,
    parts: int = 1,
    **overrides: Any,
) -> Tensors:
    """Writes `path`; the experts are random runs of the type `experts` unless that is F32.

    others: types of the experts of single layers. recipe: by a pattern of names in the file, the
    types of any matrices; the first that matches counts. Dense ones become random runs that are
    not among the weights returned. fused: gate and up in one stack. extra: more metadata, such as
    a tokenizer.
    parts: files of a split model, named after `path`.
    Returns the weights that the file means, under canonical per-expert names.
    """
    config = {**CONFIGS[family], **overrides}
    tensors = make_tensors(config)
    if "linear_num_value_heads" in config:
        for name in tensors:
            if name.endswith("A_log"):
                tensors[name] = np.abs(tensors[name])
    layers = dict.fromkeys(range(config["num_hidden_layers"]), experts) | dict(others or {})

    def kind_of(name: str) -> str:
        found = [kind for pattern, kind in (recipe or {}).items() if re.fullmatch(pattern, name)]
        return found[0] if found else layers[_layer(name)] if "_exps" in name else "F32"

    quantised = _requantise(tensors, kind_of)
    converted = _convert(tensors, family, config)
    quantised |= _random_dense(converted, kind_of)
    if fused:
        converted, quantised = _fused(converted), _fused(quantised)
    metadata = {**_metadata(config, family), **(extra or {})}
    names = sorted({*converted, *quantised})
    for number in range(parts):
        file = path if parts == 1 else part_path(path, number, parts)
        writer = gguf.GGUFWriter(file, metadata.pop("general.architecture", ARCH[family]))
        for key, value in metadata.items():
            _add(writer, key, value)
        for name in names[number::parts]:
            if name in quantised:
                writer.add_tensor(name, quantised[name], raw_dtype=Kind[kind_of(name)])
            else:
                writer.add_tensor(name, converted[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return tensors


def part_path(path: Path, number: int, parts: int) -> Path:
    """A part of a split model as gguf-split names it."""
    return path.with_name(f"{path.stem}-{number + 1:05d}-of-{parts:05d}.gguf")


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add: Callable[[str, Any], None]
    if isinstance(value, bool):
        add = writer.add_bool
    elif isinstance(value, int):
        add = writer.add_uint32
    elif isinstance(value, float):
        add = writer.add_float32
    else:
        add = writer.add_string if isinstance(value, str) else writer.add_array
    add(key, value)


def _random_dense(converted: Tensors, kind_of: Callable[[str], str]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    runs = {}
    for name, w in converted.items():
        kind = kind_of(name)
        if kind != "F32" and "_exps" not in name:
            run = BY_NAME[kind.lower()]
            runs[name] = random_runs(rng, run.name, w.size // run.cols).reshape(len(w), -1)
    return runs


def _fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The stacks of gate and up [E, I, ...] as one [E, 2 I, ...]."""
    result = dict(tensors)
    for name in [name for name in tensors if "ffn_gate_exps" in name]:
        both = result.pop(name), result.pop(name.replace("gate", "up"))
        result[name.replace("gate", "gate_up")] = np.concatenate(both, axis=1)
    return result


def _requantise(tensors: Tensors, kind_of: Callable[[str], str]) -> dict[str, np.ndarray]:
    """Replaces the experts by what random runs mean -> stacked runs [E, rows, bytes] by name."""
    stacks: dict[str, list[np.ndarray]] = {}
    rng = np.random.default_rng(7)
    for name in [n for n in tensors if re.search(r"\.mlp\.experts\.\d+\.\w+\.weight", n)]:
        (rows, cols), kind = tensors[name].shape, kind_of(_stacked(name))
        if kind == "F32":
            continue
        run = BY_NAME.get(kind.lower())
        if run is None:
            runs = gguf.quants.quantize(tensors[name], Kind[kind])
        else:
            runs = random_runs(rng, run.name, rows * cols // run.cols).reshape(rows, -1)
        tensors[name] = gguf.quants.dequantize(runs, Kind[kind]).astype(np.float32)
        stacks.setdefault(_stacked(name), []).append(runs)
    return {name: np.stack(parts) for name, parts in stacks.items()}


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _stacked(name: str) -> str:
    found = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.\d+\.(\w+)_proj\.weight", name)
    assert found is not None
    return f"blk.{found[1]}.ffn_{found[2]}_exps.weight"


def _convert(tensors: Tensors, family: str, config: Mapping[str, Any]) -> Tensors:
    result: Tensors = {}
    stacks: dict[str, list[Floats]] = {}
    for name, w in tensors.items():
        if re.search(r"\.mlp\.experts\.\d", name):
            stacks.setdefault(_stacked(name), []).append(w)
        else:
            result |= _one(name, w, family, config)
    return result | {name: np.stack(parts) for name, parts in stacks.items()}


def _one(name: str, w: Floats, family: str, config: Mapping[str, Any]) -> Tensors:
    tops = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    tops["lm_head.weight"] = "output"
    if family in HYBRID and name.endswith("norm.weight") and "linear_attn" not in name:
        w = w + np.float32(1)
    if name in tops:
        return {f"{tops[name]}.weight": w}
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    assert found is not None, name
    stem, rest = f"blk.{found[1]}.", found[2]
    special = _special(stem, rest, w, family, config)
    return special if special is not None else {stem + _name(rest, family): w}


def _name(rest: str, family: str) -> str:
    if rest in _NAMES:
        return _NAMES[rest]
    module, _, suffix = rest.rpartition(".")
    if module == "post_attention_layernorm":
        known = "post_attention_norm" if family in (*HYBRID, "gpt_oss", "glm4_moe") else "ffn_norm"
    elif shared := re.fullmatch(r"mlp\.shared_experts?\.(\w+)_proj", module):
        known = f"ffn_{shared[1]}_shexp"
    elif dense := re.fullmatch(r"mlp\.(gate|up|down)_proj", module):
        known = f"ffn_{dense[1]}"
    else:
        default = module.replace("self_attn.", "attn_").removesuffix("_proj")
        known = _NAMES.get(module, default)
    return f"{known}.{suffix}"


def _special(
    stem: str, rest: str, w: Floats, family: str, config: Mapping[str, Any]
) -> Tensors | None:
    """What the converter stores otherwise than it is."""
    if family == "mixtral" and rest in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
        letter = rest[10]
        key = "num_attention_heads" if letter == "q" else "num_key_value_heads"
        halves = w.reshape(config[key], 2, -1, w.shape[1])
        return {f"{stem}attn_{letter}.weight": halves.swapaxes(1, 2).reshape(w.shape)}
    if rest == "mlp.experts.gate_up_proj_bias":
        return {f"{stem}ffn_{p}_exps.bias": w[:, i::2] for i, p in enumerate(("gate", "up"))}
    if rest == "mlp.experts.down_proj_bias":
        return {f"{stem}ffn_down_exps.bias": w}
    if rest == "self_attn.kv_b_proj.weight":
        heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
        both = w.reshape(heads, -1, w.shape[1])
        keys = np.ascontiguousarray(both[:, :nope].transpose(0, 2, 1))
        return {f"{stem}attn_k_b.weight": keys, f"{stem}attn_v_b.weight": both[:, nope:]}
    if rest == "linear_attn.A_log" and family == "qwen3_next":
        return {f"{stem}ssm_a": -np.exp(w)}
    if rest == "linear_attn.in_proj_qkvz.weight":
        return _sorted_by_part(stem, w, config)
    if family == "qwen3_5_moe" and rest.startswith("linear_attn."):
        return _tiled(stem, rest, w, config)
    return {f"{stem}ssm_conv1d.weight": w.reshape(len(w), -1)} if "conv1d" in rest else None


def _sorted_by_part(stem: str, w: Floats, config: Mapping[str, Any]) -> Tensors:
    groups, key = config["linear_num_key_heads"], config["linear_key_head_dim"]
    value = config["linear_num_value_heads"] // groups * config["linear_value_head_dim"]
    grouped = w.reshape(groups, -1, w.shape[1])
    parts = np.split(grouped, np.cumsum([key, key, value]), axis=1)
    q, k, v, z = (part.reshape(-1, w.shape[1]) for part in parts)
    return {f"{stem}attn_qkv.weight": np.concatenate([q, k, v]), f"{stem}attn_gate.weight": z}


def _tiled(stem: str, rest: str, w: Floats, config: Mapping[str, Any]) -> Tensors | None:
    """Value heads (key head g, then j) become (j, then g)."""
    groups, dim = config["linear_num_key_heads"], config["linear_value_head_dim"]
    skip = 2 * groups * config["linear_key_head_dim"]

    def tile(rows: Floats, size: int) -> Floats:
        heads = rows.reshape(groups, -1, size, *rows.shape[1:])
        return heads.swapaxes(0, 1).reshape(rows.shape)

    suffix = rest.removeprefix("linear_attn.").removesuffix(".weight")
    if suffix in ("in_proj_qkv", "conv1d"):
        w = w.reshape(len(w), -1)
        w = np.concatenate([w[:skip], tile(w[skip:], dim)])
    elif suffix == "in_proj_z":
        w = tile(w, dim)
    elif suffix == "out_proj":
        w = np.ascontiguousarray(tile(np.ascontiguousarray(w.T), dim).T)
    elif suffix in ("in_proj_a", "in_proj_b", "dt_bias"):
        w = tile(w, 1)
    elif suffix == "A_log":
        w = -np.exp(tile(w, 1))
    else:
        return None
    return {stem + _name(rest, "qwen3_5_moe"): w}


def _metadata(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    extra = config.get("num_nextn_predict_layers", 0) if family == "glm4_moe" else 0
    inner = config.get("moe_intermediate_size") or config["intermediate_size"]
    rope = config.get("rope_parameters") or config
    values: dict[str, Any] = {
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"] + extra,
        "context_length": config["max_position_embeddings"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config.get("head_dim") or config["hidden_size"] // heads,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
        "expert_count": config.get("num_experts") or config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": inner,
        "feed_forward_length": config.get("intermediate_size", inner),
    }
    if extra:
        values["nextn_predict_layers"] = extra
    values |= _OF_FAMILY.get(family, lambda c: {})(config)
    arch = ARCH[family]
    return {f"{arch}.{key}": value for key, value in values.items()}


def _yarn(config: Mapping[str, Any]) -> dict[str, Any]:
    scaling = config.get("rope_scaling") or config["rope_parameters"]
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling["factor"]),
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        "rope.scaling.yarn_beta_fast": float(scaling["beta_fast"]),
        "rope.scaling.yarn_beta_slow": float(scaling["beta_slow"]),
    }


def _sigmoid(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_gating_func": 2,
    }


def _hybrid(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["linear_num_value_heads"]
    return {
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * config["linear_value_head_dim"],
        "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
        "rope.dimension_count": config["head_dim"] // 4,
    }


def _deepseek(config: Mapping[str, Any]) -> dict[str, Any]:
    rope, rank = config["qk_rope_head_dim"], config["kv_lora_rank"]
    lora = {"attention.q_lora_rank": config["q_lora_rank"]} if config.get("q_lora_rank") else {}
    scale = float((config.get("rope_scaling") or config)["mscale_all_dim"])
    return {
        **_sigmoid(config),
        **lora,
        **_yarn(config),
        "rope.scaling.yarn_log_multiplier": 0.1 * scale,
        "rope.dimension_count": rope,
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": config["v_head_dim"],
        "expert_group_count": config["n_group"],
        "expert_group_used_count": config["topk_group"],
    }


_OF_FAMILY: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "gpt_oss": lambda c: {**_yarn(c), "attention.sliding_window": c["sliding_window"]},
    "glm4_moe": lambda c: {**_sigmoid(c), "rope.dimension_count": c["head_dim"] // 2},
    "minimax_m2": lambda c: {"rope.dimension_count": c["rotary_dim"]},
    "deepseek_v3": _deepseek,
    "qwen3_next": _hybrid,
    "qwen3_5_moe": _hybrid,
}
