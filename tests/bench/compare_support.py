"""A tiny shape, and the Python that has the peer's packages."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from flashmoe.settings import PEER_PYTHON

PEER = os.environ.get(PEER_PYTHON, sys.executable)

TINY: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def _can_import(package: str) -> bool:
    command = [PEER, "-I", "-c", f"import {package}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where the peer's Python lacks a package."""
    reason = f"{PEER} has no {package}: install the 'compare' extra, or set {PEER_PYTHON}"
    return pytest.mark.skipif(not _can_import(package), reason=reason)
