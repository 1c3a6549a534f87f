"""What the GGUF converter has changed in each architecture, undone tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from flashmoe.checkpoint.gguf_tensors import (
    Made,
    Order,
    expect_rows,
    expect_shape,
    made_floats,
    part,
    reordered,
    tiled_heads,
    unrotated,
)
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError, ConfigError

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
        stack = entry if ".mlp.experts." in name and isinstance(entry, Tensor) else None
        if stack is not None and len(stack.shape) == 3:
            result |= _experts(name, stack, config["num_experts"])
        else:
            result[name] = entry
    consumed = _consumed(entries)
    return {name: entry for name, entry in result.items() if name not in consumed}


def _consumed(entries: Entries) -> set[str]:
    """Tensors of which others were made."""
    gone = [".attn_k_b.weight", ".attn_v_b.weight"]
    if any(name.endswith(".in_proj_qkvz.weight") for name in entries):
        gone += [".in_proj_qkv.weight", ".in_proj_z.weight"]
    return {name for name in entries if name.endswith(tuple(gone))}


def _experts(name: str, stack: Tensor, count: int) -> Entries:
    """A stack of `count` matrices as one tensor per expert; other tensors as they are."""
    stem, _, suffix = name.rpartition(".experts.")
    if suffix == "gate_up_proj":
        expect_rows(stack, count)
        return _halves(f"{stem}.experts", stack)
    if suffix not in ("gate_proj.weight", "up_proj.weight", "down_proj.weight"):
        return {name: stack}
    expect_rows(stack, count)
    names = [f"{stem}.experts.{expert}.{suffix}" for expert in range(count)]
    return {one: part(stack, one, expert) for expert, one in enumerate(names)}


def _halves(stem: str, both: Tensor) -> Entries:
    """A stack [E, 2 I, H] as gate and up of each expert, gate first."""
    count, (rows, odd) = both.shape[0], divmod(both.shape[1], 2)
    if odd:
        raise ConfigError(
            "gate and up of different sizes in one tensor",
            where=f"{both.path}: {both.name}",
            expected="an even number of rows",
            got=both.shape[1],
        )
    halves = dataclasses.replace(both, shape=(2 * count, rows, both.shape[2]))
    names = [f"{stem}.{e}.{half}_proj.weight" for e in range(count) for half in ("gate", "up")]
    return {one: part(halves, one, index) for index, one in enumerate(names)}


def _beside(tensors: Mapping[str, Tensor], tensor: Tensor, name: str) -> Tensor:
    """The tensor of this name, which must be there because `tensor` is."""
    if name not in tensors:
        raise CheckpointError(
            "tensor is missing", where=tensor.path, expected=f"{name} beside {tensor.name}"
        )
    return tensors[name]


def _mixtral(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    """Rows of Q and K as rotary embedding in halves wants them."""
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    for name, tensor in tensors.items():
        for letter, count in heads.items():
            if name.endswith(f".self_attn.{letter}_proj.weight"):
                rows = count * config["head_dim"]
                yield name, reordered(tensor, name, rows, partial(unrotated, count, rows))


def _deepseek_v3(
    tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Entry]]:
    """kv_b_proj of its halves: keys [heads, rank, nope], values [heads, v, rank]."""
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    for name, keys in tensors.items():
        if not name.endswith(".attn_k_b.weight"):
            continue
        stem = name.removesuffix("attn_k_b.weight")
        layer = stem.removeprefix("gguf:").replace("blk.", "model.layers.")
        values = _beside(tensors, keys, f"{stem}attn_v_b.weight")
        expect_shape(keys, (heads, rank, nope))
        expect_shape(values, (heads, value, rank))
        new, shape = f"{layer}self_attn.kv_b_proj.weight", (heads * (nope + value), rank)
        yield new, made_floats(new, shape, (keys, values), _join_keys_and_values)


def _join_keys_and_values(keys: Any, values: Any) -> Any:
    joined = np.concatenate([keys.transpose(0, 2, 1), values], axis=1)
    return joined.reshape(-1, joined.shape[2])


def _qwen3_next(
    tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Entry]]:
    yield from _hybrid(tensors)
    for name, qkv in tensors.items():
        if name.endswith(".in_proj_qkv.weight"):
            z = _beside(tensors, qkv, name.replace("in_proj_qkv", "in_proj_z"))
            keys, values = _delta_rows(config)
            expect_shape(qkv, (2 * keys + values, config["hidden_size"]))
            expect_shape(z, (values, config["hidden_size"]))
            new = name.replace("in_proj_qkv", "in_proj_qkvz")
            shape = (2 * (keys + values), config["hidden_size"])
            yield new, made_floats(new, shape, (qkv, z), _grouped_by(config))


def _delta_rows(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of all key heads and of all value heads."""
    return (
        config["linear_num_key_heads"] * config["linear_key_head_dim"],
        config["linear_num_value_heads"] * config["linear_value_head_dim"],
    )


def _grouped_by(config: Mapping[str, Any]) -> Callable[..., Any]:
    """q, k, v, z sorted -> the rows of the first key head of all four, then the next one's."""
    groups, (keys, _) = config["linear_num_key_heads"], _delta_rows(config)

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
            yield name, made_floats(name, tensor.shape, (tensor,), _log)


def _log(minus_exp: Any) -> Any:
    """log(-x); what is no number then is refused as any weight that is not finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(-minus_exp)


def _qwen3_5_moe(
    tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Entry]]:
    """Value heads are stored tiled: in the rows of most tensors, in the columns of out_proj."""
    yield from _hybrid(tensors)
    heads, (keys, values) = config["linear_num_value_heads"], _delta_rows(config)
    orders = {
        "in_proj_qkv.weight": (2 * keys + values, partial(_after_keys, config)),
        "conv1d.weight": (2 * keys + values, partial(_after_keys, config)),
        "in_proj_z.weight": (values, partial(_tiled, config)),
        **dict.fromkeys(
            ("in_proj_a.weight", "in_proj_b.weight", "dt_bias"),
            (heads, partial(_tiled, config, dim=1)),
        ),
    }
    for name, tensor in tensors.items():
        suffix = name.rpartition(".linear_attn.")[2]
        if suffix in orders:
            yield name, reordered(tensor, name, *orders[suffix])
        elif suffix == "A_log":
            expect_shape(tensor, (heads,))
            yield name, made_floats(name, tensor.shape, (tensor,), partial(_tiled_log, config))
        elif suffix == "out_proj.weight":
            expect_shape(tensor, (config["hidden_size"], values))
            yield name, made_floats(name, tensor.shape, (tensor,), partial(_tiled_columns, config))


def _tiled(config: Mapping[str, Any], dim: int | None = None) -> Order:
    """The order of the value heads' rows, `dim` each (default: as many as a head has)."""
    heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    return tiled_heads(*heads, config["linear_value_head_dim"] if dim is None else dim)


def _after_keys(config: Mapping[str, Any]) -> Order:
    """Queries and keys as they are, then the rows of the value heads."""
    first = 2 * _delta_rows(config)[0]
    return np.concatenate([np.arange(first), first + _tiled(config)])


def _tiled_log(config: Mapping[str, Any], minus_exp: Any) -> Any:
    return _log(minus_exp)[_tiled(config, dim=1)]


def _tiled_columns(config: Mapping[str, Any], weight: Any) -> Any:
    return weight[:, _tiled(config)]


CHANGES: dict[str, Change] = {
    "mixtral": _mixtral,
    "deepseek_v3": _deepseek_v3,
    "qwen3_next": _qwen3_next,
    "qwen3_5_moe_text": _qwen3_5_moe,
}
