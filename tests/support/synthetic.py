"""A pack of random weights that is larger than the memory that tests allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.bench.shapes import SHAPES
from flashmoe.bench.synth import SyntheticCheckpoint
from flashmoe.store.pack import pack_open_checkpoint
from flashmoe.store.plan import PackOptions


def write_synthetic(pack: Path) -> None:
    """4 layers of 64 experts, 110 MB in all."""
    shape = {**SHAPES["qwen3-30b-a3b"], "num_hidden_layers": 4, "hidden_size": 512}
    shape |= {"num_experts": 64, "moe_intermediate_size": 512, "vocab_size": 1000}
    shape |= {"num_attention_heads": 8, "max_position_embeddings": 1024}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", shape)
        with SyntheticCheckpoint("small") as checkpoint:
            pack_open_checkpoint(checkpoint, pack, PackOptions.parse("q4", "q8", 64), None)
