"""From a config's model_type to the module of its family, imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from flashmoe.errors import ConfigError

FAMILIES = {
    "qwen3_moe": "qwen3_moe",
    "qwen3_next": "qwen3_next",
    "gpt_oss": "gpt_oss",
    "qwen3_5_moe": "qwen3_5_moe",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "deepseek_v3": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "glm4_moe_lite": "deepseek_v3",
    "mixtral": "mixtral",
    "olmoe": "olmoe",
    "glm4_moe": "glm4_moe",
    "minimax_m2": "minimax_m2",
    "deepseek_v32": "deepseek_v32",
    "glm_moe_dsa": "deepseek_v32",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "deepseek_v4": "deepseek_v4",
}

# Types whose logits the tests compare with transformers (tests/test_model_oracle.py). The others of
# a family differ from those in sizes, or in where a config is nested.
ORACLE_TYPES = frozenset(
    {
        "qwen3_moe",
        "qwen3_next",
        "gpt_oss",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "deepseek_v3",
        "glm4_moe_lite",
        "mixtral",
        "olmoe",
        "glm4_moe",
        "minimax_m2",
        "deepseek_v32",
        "glm_moe_dsa",
        "gemma4_text",
        "deepseek_v4",
    }
)

# Families whose turns, stop tokens and reply format the tests check (tests/models/test_chat.py).
CHAT_FAMILIES = frozenset(FAMILIES.values())

# Families that run from a checkpoint as it is, without a pack (tests/store/test_inplace.py).
IN_PLACE_FAMILIES = frozenset(FAMILIES.values())

# Those whose forward pass the CUDA backend has kernels for.
CARD_FAMILIES = frozenset(
    {
        "qwen3_moe",
        "qwen3_next",
        "qwen3_5_moe",
        "deepseek_v3",
        "gpt_oss",
        "mixtral",
        "olmoe",
        "glm4_moe",
        "minimax_m2",
    }
)


def family_name(config: Mapping[str, Any]) -> str:
    """The family of a raw config; an unsupported model_type is a ConfigError."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            "model_type is not supported",
            where="config.json: model_type",
            expected=" | ".join(FAMILIES),
            got=repr(model_type),
        )
    return FAMILIES[model_type]


def load_family(name: str) -> ModuleType:
    """The module of a family: Config, read_config(raw), weights(config) and its forward pass."""
    if name not in FAMILIES.values():
        expected = " | ".join(sorted(set(FAMILIES.values())))
        raise ConfigError("unknown model family", expected=expected, got=repr(name))
    return importlib.import_module(f"flashmoe.models.{name}")
