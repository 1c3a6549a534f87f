"""The GGUF twin: the plan of a tiny one, read back by gguf, run by llama.cpp."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flashmoe.bench import shapes
from flashmoe.bench.compare.child import peer_program
from flashmoe.bench.compare.peer import tensor_bytes
from flashmoe.bench.compare.trials import USUAL
from flashmoe.bench.compare.twin import twin_plan, twin_tensors
from flashmoe.bench.synth import BLOCK_WEIGHTS, SyntheticCheckpoint
from flashmoe.errors import UsageError
from tests.bench.compare_support import PEER, TINY, needs
from tests.support.tolerances import QUANTIZED_SPREAD

_READ = """
import gguf, json, sys
reader = gguf.GGUFReader(sys.argv[1])
def facts(t):
    weights = gguf.quants.dequantize(t.data, t.tensor_type)
    return [t.tensor_type.name, list(weights.shape), float(weights.mean()), float(weights.std())]
fields = {name: field.contents() for name, field in reader.fields.items()
          if not name.startswith("tokenizer.ggml.t")}
tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
print(json.dumps([{t.name: facts(t) for t in reader.tensors}, fields, tokens], default=str))
"""


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch) -> SyntheticCheckpoint:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    return SyntheticCheckpoint("tiny")


@pytest.fixture
def written(checkpoint: SyntheticCheckpoint, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    peer_program(PEER).call("write", twin_plan(checkpoint, path), lambda text: None)
    return path


def read_back(path: Path) -> Any:
    command = [PEER, "-I", "-c", _READ, str(path)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_every_weight_of_the_checkpoint_is_in_the_twin(checkpoint: SyntheticCheckpoint) -> None:
    twins = twin_tensors(checkpoint)
    weights = sum(tensor_bytes("F32", twin.shape) // 4 for twin in twins)
    assert weights == sum(tensor.nbytes // 2 for tensor in checkpoint.tensors.values())
    assert len({twin.name for twin in twins}) == len(twins) == 3 + 2 * (9 + 3)


def test_bits_are_those_of_the_pack(checkpoint: SyntheticCheckpoint) -> None:
    bits = {
        twin.name: 8 * twin.nbytes / (tensor_bytes("F32", twin.shape) // 4)
        for twin in twin_tensors(checkpoint)
    }
    assert bits["blk.1.ffn_down_exps.weight"] == 4.5
    assert bits["blk.1.attn_q.weight"] == bits["output.weight"] == 8.5
    assert bits["blk.0.ffn_gate_inp.weight"] == bits["blk.0.attn_norm.weight"] == 32


def test_slices_start_at_blocks_and_differ_by_expert(checkpoint: SyntheticCheckpoint) -> None:
    for twin in twin_tensors(checkpoint):
        if twin.format != "F32":
            assert all(0 <= start < BLOCK_WEIGHTS and start % 32 == 0 for start in twin.starts)
        if "_exps" in twin.name:
            assert len(set(twin.starts)) == twin.shape[0] == 8


def test_other_families_are_refused() -> None:
    checkpoint = SyntheticCheckpoint("qwen3.5-35b-a3b", layers=4)
    with pytest.raises(UsageError, match="no twin for this family"):
        twin_tensors(checkpoint)


@needs("gguf")
def test_gguf_reads_what_was_planned(checkpoint: SyntheticCheckpoint, written: Path) -> None:
    tensors, fields, tokens = read_back(written)
    assert set(tensors) == {twin.name for twin in twin_tensors(checkpoint)}
    for twin in twin_tensors(checkpoint):
        format, shape, mean, std = tensors[twin.name]
        assert (format, shape) == (twin.format, list(twin.shape)), twin.name
        if twin.constant is not None:
            assert (mean, std) == (1.0, 0.0), twin.name
        else:
            assert std == pytest.approx(twin.divisor**-0.5, rel=QUANTIZED_SPREAD), twin.name
    assert fields["general.architecture"] == "qwen3moe"
    assert fields["qwen3moe.expert_used_count"] == 2
    assert fields["qwen3moe.attention.key_length"] == 64
    assert tokens == TINY["vocab_size"]


@needs("llama_cpp")
@needs("gguf")
def test_llama_cpp_runs_it_and_routing_spreads(written: Path) -> None:
    peer = peer_program(PEER)
    request = {
        "model": str(written),
        "threads": 1,
        "context_length": 256,
        "settings": USUAL,
        "experts_per_token": 2,
        "ids": list(range(300, 348)),
    }
    distinct = peer.call("routing", request, lambda text: None)["distinct"]
    assert len(distinct) == 2
    assert min(distinct) >= 6  # of 8
    more = {"kind": "decode", "fill": [[1, 2, 3]], "warm_up": [4, 5]}
    run = peer.call("run", {**request, **more}, lambda text: None)
    assert run["tokens"] == 48
    assert run["seconds"] > 0
    assert run["peak_bytes"] > 0
