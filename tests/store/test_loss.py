"""What `pack` says of weights that it rounds, against the errors of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.quant import Format
from flashmoe.store.loss import losses
from flashmoe.store.opening import open_checkpoint
from flashmoe.store.pack import plan_pack
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from tests.store.support import decode_record, read_record
from tests.support.gguf_files import write_gguf
from tests.support.tiny_checkpoints import write_checkpoint

WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 2}
UP = {r"blk\.1\.ffn_up_exps\.weight": "Q6_K"}


def test_of_a_layer_whose_gate_and_up_differ(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = write_gguf(tmp_path / "m.gguf", "qwen3_moe", "Q4_K", recipe=UP, **WIDE)
    flashmoe.pack(tmp_path / "m.gguf", tmp_path / "packed")
    assert "experts of layer 1 differ in type (q4_k, q6_k): they become q8" in caplog.text
    assert "experts: q4_k, q6_k becomes q8 g32, relative RMS error 0." in caplog.text
    pack = PackedModel.open(tmp_path / "packed")
    stem = "model.layers.1.mlp.experts.3."
    gate, up, down = decode_record(pack.manifest.layouts[1], read_record(pack, 1, 3))
    np.testing.assert_array_equal(down, tensors[f"{stem}down_proj.weight"])
    for got, name in ((gate, "gate"), (up, "up")):
        expected = tensors[f"{stem}{name}_proj.weight"]
        assert 0 < np.abs(got - expected).max() <= np.abs(expected).max() / 127


def test_the_sample_is_like_the_whole(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "qwen3_moe")
    with open_checkpoint(source) as checkpoint:
        plan = plan_pack(checkpoint, PackOptions.parse("q4", "bf16", 32))
        assert losses(checkpoint, plan) == ()  # a bf16 source is not quantised
        (loss,) = losses(checkpoint, plan, lambda part: part.format.name == "q4")
        assert losses(checkpoint, plan, lambda part: part.format.name == "bf16") == ()
    assert (loss.part, loss.source, loss.format) == ("experts", "BF16", Format("q4", 32))
    errors, weights = [], []
    for options in ("q4", "bf16"):
        flashmoe.pack(source, tmp_path / options, experts=options, dense="bf16", group=32)
    pack, exact = (PackedModel.open(tmp_path / name) for name in ("q4", "bf16"))
    for layer in (0, 1):
        for expert in range(pack.num_experts):
            got, expected = (
                decode_record(one.manifest.experts, read_record(one, layer, expert))
                for one in (pack, exact)
            )
            errors += [np.square(a - b).sum() for a, b in zip(got, expected, strict=True)]
            weights += [np.square(b).sum() for b in expected]
    assert loss.relative_rms == pytest.approx(np.sqrt(sum(errors) / sum(weights)), rel=0.1)


def test_nothing_is_said_where_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen3_moe", "Q4_K", others={1: "Q6_K"}, **WIDE)
    flashmoe.pack(tmp_path / "m.gguf", tmp_path / "packed")
    assert caplog.text == ""


def test_what_is_converted_on_request_is_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen3_moe", "Q6_K", **WIDE)
    flashmoe.pack(tmp_path / "m.gguf", tmp_path / "packed", experts="q4")
    assert "experts: q6_k becomes q4 g64, relative RMS error" in caplog.text
    assert "(32 matrices sampled)" not in caplog.text  # there are only 24
    assert "(24 matrices sampled)" in caplog.text
