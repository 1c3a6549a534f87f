"""What the GGUF converter has changed in each architecture, undone tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flashmoe.checkpoint.gguf_tensors import (
    Made,
    made_floats,
    part,
    reordered,
    tiled_heads,
    unrotated,
)
from flashmoe.checkpoint.safetensors import Tensor

Entry = Tensor | Made
Entries = dict[str, Entry]
Change = Callable[[dict[str, Tensor], Mapping[str, Any]], Iterator[tuple[str, Entry]]]
"""Tensors by name and the config -> those that are to be replaced or added."""


def as_on_the_hub(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Entries:
    """Every tensor under its name on the hub -> the same, changed back, experts one by one."""
    entries: Entries = dict(tensors)
    change = CHANGES.get(config["model_type"])
    if change is not None:
        entries |= dict(change(tensors, config))
    result: Entries = {}
    for name, entry in entries.items():
        result |= _experts(name, entry) if ".mlp.experts." in name else {name: entry}
    return {name: entry for name, entry in result.items() if name not in _consumed(entries)}


def _consumed(entries: Entries) -> set[str]:
    """Tensors of which others were made."""
    gone = [".experts.gate_proj.bias", ".experts.up_proj.bias", ".experts.down_proj.bias"]
    gone += [".attn_k_b.weight", ".attn_v_b.weight"]
    if any(name.endswith(".in_proj_qkvz.weight") for name in entries):
        gone += [".in_proj_qkv.weight", ".in_proj_z.weight"]
    return {name for name in entries if name.endswith(tuple(gone))}


def _experts(name: str, entry: Entry) -> Entries:
    """A stack of matrices as one tensor per expert; everything else as it is."""
    stem, _, suffix = name.rpartition(".experts.")
    if suffix == "gate_up_proj" and isinstance(entry, Tensor) and len(entry.shape) == 3:
        return _halves(f"{stem}.experts", entry)
    stacked = suffix in ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    if not stacked or isinstance(entry, Made) or len(entry.shape) != 3:
        return {name: entry}
    names = [f"{stem}.experts.{expert}.{suffix}" for expert in range(entry.shape[0])]
    return {one: part(entry, one, expert) for expert, one in enumerate(names)}


def _halves(stem: str, both: Tensor) -> Entries:
    """A stack [E, 2 I, H] as gate and up of each expert, gate first."""
    count, rows = both.shape[0], both.shape[1] // 2
    halves = dataclasses.replace(both, shape=(2 * count, rows, both.shape[2]))
    names = [f"{stem}.{e}.{half}_proj.weight" for e in range(count) for half in ("gate", "up")]
    return {one: part(halves, one, index) for index, one in enumerate(names)}


def _mixtral(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    """Rows of Q and K as rotary embedding in halves wants them."""
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, tensor in tensors.items():
        for letter, count in heads.items():
            if name.endswith(f".self_attn.{letter}_proj.weight"):
                yield name, reordered(tensor, name, unrotated(count, count * config["head_dim"]))


def _gpt_oss(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    """Biases of gate and up in turn, as they are published."""
    for name, gate in tensors.items():
        if not name.endswith(".experts.gate_proj.bias"):
            continue
        stem = name.removesuffix("gate_proj.bias")
        both = (gate, tensors[f"{stem}up_proj.bias"])
        new, shape = f"{stem}gate_up_proj_bias", (gate.shape[0], 2 * gate.shape[1])
        yield new, made_floats(new, shape, both, lambda g, u: np.stack([g, u], axis=2))
        down = tensors[f"{stem}down_proj.bias"]
        new = f"{stem}down_proj_bias"
        yield new, made_floats(new, down.shape, (down,), lambda bias: bias)


def _deepseek_v3(
    tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Entry]]:
    """kv_b_proj of its halves: keys [heads, rank, nope], values [heads, v, rank]."""
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    rows = heads * (config["qk_nope_head_dim"] + config["v_head_dim"])
    for name, keys in tensors.items():
        if not name.endswith(".attn_k_b.weight"):
            continue
        stem = name.removesuffix("attn_k_b.weight")
        new = f"{stem}self_attn.kv_b_proj.weight".removeprefix("gguf:").replace(
            "blk.", "model.layers."
        )
        both = (keys, tensors[f"{stem}attn_v_b.weight"])
        yield new, made_floats(new, (rows, rank), both, _join_keys_and_values)


def _join_keys_and_values(keys: Any, values: Any) -> Any:
    joined = np.concatenate([keys.transpose(0, 2, 1), values], axis=1)
    return joined.reshape(-1, joined.shape[2])


def _qwen3_next(
    tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Entry]]:
    yield from _hybrid(tensors)
    for name, qkv in tensors.items():
        if name.endswith(".in_proj_qkv.weight"):
            z = tensors[name.replace("in_proj_qkv", "in_proj_z")]
            new = name.replace("in_proj_qkv", "in_proj_qkvz")
            shape = (qkv.shape[0] + z.shape[0], qkv.shape[1])
            yield new, made_floats(new, shape, (qkv, z), _grouped_by(config))


def _grouped_by(config: Mapping[str, Any]) -> Callable[..., Any]:
    """q, k, v, z sorted -> the rows of the first key head of all four, then the next one's."""
    groups = config["linear_num_key_heads"]
    keys = groups * config["linear_key_head_dim"]

    def join(qkv: Any, z: Any) -> Any:
        parts = [*np.split(qkv, [keys, 2 * keys]), z]
        grouped = [rows.reshape(groups, -1, rows.shape[1]) for rows in parts]
        return np.concatenate(grouped, axis=1).reshape(-1, z.shape[1])

    return join


def _hybrid(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Entry]]:
    """Norms without the 1 that was added, A_log of -exp(A_log)."""
    for name, tensor in tensors.items():
        if name.endswith("norm.weight") and not name.endswith(".linear_attn.norm.weight"):
            yield name, made_floats(name, tensor.shape, (tensor,), lambda w: w - np.float32(1))
        elif name.endswith(".A_log"):
            yield name, made_floats(name, tensor.shape, (tensor,), lambda a: np.log(-a))


def _qwen3_5_moe(
    tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Entry]]:
    """Value heads are stored tiled: in the rows of most tensors, in the columns of out_proj."""
    yield from _hybrid(tensors)
    key_heads, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    dim = config["linear_value_head_dim"]
    wide, one = tiled_heads(key_heads, heads, dim), tiled_heads(key_heads, heads, 1)
    first = 2 * key_heads * config["linear_key_head_dim"]
    after = np.concatenate([np.arange(first), first + wide])
    orders = {
        "in_proj_qkv.weight": after,
        "conv1d.weight": after,
        "in_proj_z.weight": wide,
        "in_proj_a.weight": one,
        "in_proj_b.weight": one,
        "dt_bias": one,
    }
    for name, tensor in tensors.items():
        suffix = name.rpartition(".linear_attn.")[2]
        if suffix in orders:
            yield name, reordered(tensor, name, orders[suffix])
        elif suffix == "A_log":
            yield name, made_floats(name, tensor.shape, (tensor,), lambda a: np.log(-a)[one])
        elif suffix == "out_proj.weight":
            yield name, made_floats(name, tensor.shape, (tensor,), lambda w: w[:, wide])


CHANGES: dict[str, Change] = {
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
    "qwen3_next": _qwen3_next,
    "qwen3_5_moe_text": _qwen3_5_moe,
}
