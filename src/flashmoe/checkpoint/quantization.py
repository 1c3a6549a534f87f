"""How config.json describes quantised layers: MLX, GPTQ, AWQ, compressed-tensors, NVFP4.

Which tensors are quantised shows in the tensors; FP8 and MXFP4 as gpt-oss has it, which say nothing
else, are read without this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flashmoe.errors import ConfigError

Method = Literal["mlx", "gptq", "awq", "compressed-tensors", "modelopt"]
METHODS = ("gptq", "awq", "compressed-tensors", "modelopt")
BITS = (2, 3, 4, 5, 6, 8)
KEYS = ("quantization", "quantization_config")
MLX_MODES = {"affine": (32, 64, 128), "mxfp4": (32,), "nvfp4": (16,)}
PACKED, PLAIN, NVFP4 = "pack-quantized", "int-quantized", "nvfp4-pack-quantized"


@dataclass(frozen=True)
class Grouping:
    """bits per code, columns per scale (0: one scale per row); mode: one of MLX_MODES."""

    bits: int
    group: int
    mode: str = "affine"


@dataclass(frozen=True)
class Quantization:
    """default: of layers without an entry in overrides, which is by module path (MLX).

    symmetric: codes about 2^(bits - 1). packing: `format` of compressed-tensors. zero_offset: what
    GPTQ left out of its zeros (1 in version 1). permuted: columns may be grouped in any order.
    """

    method: Method
    default: Grouping
    overrides: Mapping[str, Grouping] = field(default_factory=dict)
    symmetric: bool = False
    packing: str = ""
    zero_offset: int = 0
    permuted: bool = False

    def of(self, module: str) -> Grouping:
        """The grouping of a module by its path in the checkpoint."""
        return self.overrides.get(module, self.default)


def is_readable(section: object) -> bool:
    """Whether a `quantization` or `quantization_config` is of a method that is read here."""
    if not isinstance(section, dict):
        return False
    return section.get("quant_method") in METHODS or _is_mlx(section)


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Of a raw config.json; None where there is none, or one that families read by themselves.

    Raises ConfigError for bits, groups or kinds that are not supported.
    """
    holders = [one for one in (config, config.get("text_config")) if isinstance(one, dict)]
    for holder in holders:
        for key in KEYS:
            if is_readable(holder.get(key)):
                return _read(_Section(holder[key], f"config.json: {key}"))
    return None


def _is_mlx(section: Mapping[str, Any]) -> bool:
    return "quant_method" not in section and "bits" in section and "group_size" in section


@dataclass(frozen=True)
class _Section:
    raw: Mapping[str, Any]
    where: str

    def one_of(self, key: str, *allowed: object, default: object = None) -> Any:
        value = self.raw.get(key, default)
        if not any(type(value) is type(item) and value == item for item in allowed):
            expected = " | ".join(map(repr, allowed))
            raise ConfigError(
                "unsupported value",
                where=f"{self.where}: {key}",
                expected=expected,
                got=repr(value),
            )
        return value

    def group(self, default: int | None = None) -> int:
        """-1 and null: one scale per row."""
        value = self.raw.get("group_size", default)
        if value in (None, -1):
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**20:
            raise ConfigError(
                "bad value", where=f"{self.where}: group_size", expected="columns", got=repr(value)
            )
        return value


def _read(section: _Section) -> Quantization:
    readers = {
        "gptq": _gptq,
        "awq": _awq,
        "compressed-tensors": _compressed_tensors,
        "modelopt": _modelopt,
    }
    return readers.get(section.raw.get("quant_method", ""), _mlx)(section)


def _mlx(section: _Section) -> Quantization:
    overrides = {
        path: _mlx_grouping(_Section(value, f"{section.where}: {path}"))
        for path, value in section.raw.items()
        if isinstance(value, dict) and "bits" in value
    }
    return Quantization("mlx", _mlx_grouping(section), overrides)


def _mlx_grouping(section: _Section) -> Grouping:
    mode = section.one_of("mode", *MLX_MODES, default="affine")
    bits = section.one_of("bits", *(BITS if mode == "affine" else (4,)))
    return Grouping(bits, section.one_of("group_size", *MLX_MODES[mode]), mode)


def _gptq(section: _Section) -> Quantization:
    form = section.one_of("checkpoint_format", "gptq", "gptq_v2", default="gptq")
    return Quantization(
        "gptq",
        Grouping(section.one_of("bits", 2, 3, 4, 8), section.group()),
        symmetric=section.one_of("sym", True, False, default=False),
        zero_offset=1 if form == "gptq" else 0,
        permuted=section.one_of("desc_act", True, False, default=False),
    )


def _awq(section: _Section) -> Quantization:
    version = section.raw.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        section.one_of("version", "gemm")
    section.one_of("zero_point", True, default=True)
    return Quantization("awq", Grouping(section.one_of("bits", 4), section.group(128)))


def _compressed_tensors(section: _Section) -> Quantization:
    packing = section.one_of("format", PACKED, PLAIN, NVFP4)
    weights = _compressed_weights(section)
    if packing == NVFP4:
        weights.one_of("type", "float")
        grouping = Grouping(weights.one_of("num_bits", 4), weights.one_of("group_size", 16))
        return Quantization("compressed-tensors", grouping, packing=packing)
    weights.one_of("type", "int", default="int")
    weights.one_of("strategy", "group", "channel", default="group")
    bits = weights.one_of("num_bits", *(BITS if packing == PACKED else (8,)))
    return Quantization(
        "compressed-tensors",
        Grouping(bits, weights.group()),
        symmetric=weights.one_of("symmetric", True, False, default=True),
        packing=packing,
        permuted=weights.raw.get("actorder") in ("group", True),
    )


def _compressed_weights(section: _Section) -> _Section:
    """What all groups of modules say of their weights."""
    groups = section.raw.get("config_groups")
    members = list(groups.values()) if isinstance(groups, dict) else []
    found = [one.get("weights") for one in members if isinstance(one, dict)]
    if not found or not isinstance(found[0], dict) or any(one != found[0] for one in found):
        raise ConfigError(
            "unsupported value",
            where=f"{section.where}: config_groups",
            expected="groups with the same weights",
            got=found,
        )
    return _Section(found[0], f"{section.where}: weights")


def _modelopt(section: _Section) -> Quantization:
    section.one_of("quant_algo", "NVFP4")
    return Quantization("modelopt", Grouping(4, 16), packing=NVFP4)
