"""Formats by layer for a size: what they cost, that they fit, that what matters gets more bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.errors import UsageError
from flashmoe.quant import Format
from flashmoe.store.calibration import Calibration, CalibrationWriter
from flashmoe.store.opening import open_checkpoint
from flashmoe.store.pack import pack_checkpoint, plan_pack
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from flashmoe.store.sensitivity import formats_for_bits, layer_losses
from tests.support.tiny_checkpoints import write_checkpoint

FORMATS = [Format(name, 32) for name in ("q2", "q3", "q4")]
OPTIONS = PackOptions.parse("q4", "q8", 32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_checkpoint(tmp_path_factory.mktemp("source") / "tiny", "qwen3_moe")
    (source / "tokenizer.json").unlink()  # a stand-in for bytes, no tokenizer
    return source


@pytest.fixture(scope="module")
def inputs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the second layer ten times as large as of the first."""
    path, rng = tmp_path_factory.mktemp("inputs") / "c", np.random.default_rng(83)
    with open_checkpoint(checkpoint) as source:
        manifest = plan_pack(source, OPTIONS).manifest
    layers = [layer.layer for layer in manifest.layers]
    writer = CalibrationWriter(path, layers, (96, manifest.experts.hidden_size, 2))
    writer.open({"text": "random numbers"})
    for layer in layers:
        ids = rng.integers(0, manifest.experts.num_experts, (96, 2), dtype=np.int32)
        x = rng.standard_normal((96, manifest.experts.hidden_size)) * 10.0**layer
        writer.add(layer, ids, x.astype(np.float32), np.full((96, 2), 0.5, np.float32))
    writer.finish()
    return path


def chosen(checkpoint: Path, inputs: Path, bits: float) -> list[tuple[str, str]]:
    with open_checkpoint(checkpoint) as source:
        found = formats_for_bits(
            source, Calibration(inputs), plan_pack(source, OPTIONS), bits, group=32
        )
    return [(one.gate_up.name, one.down.name) for one in found.values()]


def test_more_bits_lose_less(checkpoint: Path, inputs: Path) -> None:
    with open_checkpoint(checkpoint) as source:
        found = layer_losses(source, Calibration(inputs), plan_pack(source, OPTIONS), FORMATS)
    assert len(found) == 2
    for losses in found.values():
        for by_format in (losses.gate_up, losses.down):
            two, three, four = (by_format[one] for one in FORMATS)
            assert 0 < 4 * four < 2 * three < two


def test_sizes_are_kept_and_the_layer_that_matters_gets_more(
    checkpoint: Path, inputs: Path
) -> None:
    stored = {"q2": 2.25, "q3": 3.25, "q4": 5.0}
    for bits in (2.25, 3.0, 3.7, 5.0):
        formats = chosen(checkpoint, inputs, bits)
        means = [(2 * stored[gate_up] + stored[down]) / 3 for gate_up, down in formats]
        assert np.mean(means) <= bits
        assert means[0] <= means[1]
    assert chosen(checkpoint, inputs, 2.25) == [("q2", "q2")] * 2
    assert chosen(checkpoint, inputs, 5.0) == [("q4", "q4")] * 2
    assert len(set(chosen(checkpoint, inputs, 3.0))) == 2


def test_a_pack_of_such_a_size_runs(checkpoint: Path, inputs: Path, tmp_path: Path) -> None:
    options = PackOptions.parse("auto", "q8", 32, experts_bits=3.0)
    pack_checkpoint(checkpoint, tmp_path / "pack", options, calibration=inputs)
    layouts = PackedModel.open(tmp_path / "pack").manifest.layouts
    formats = [(one.gate_up.name, one.down.name) for one in layouts.values()]
    assert formats == chosen(checkpoint, inputs, 3.0)
    with flashmoe.load(tmp_path / "pack") as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()


def test_sizes_that_cannot_be_are_refused(checkpoint: Path, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too few bits") as caught:
        chosen(checkpoint, inputs, 2.0)
    assert "at least 2.25" in str(caught.value)
    with pytest.raises(UsageError, match="too few bits"):
        chosen(checkpoint, inputs, float("nan"))
    assert set(chosen(checkpoint, inputs, float("inf"))) == {("q4", "q4")}
    with pytest.raises(UsageError, match="needs a calibration"):
        pack_checkpoint(
            checkpoint, tmp_path / "p", PackOptions.parse("auto", "q8", 32, experts_bits=3.0)
        )
    options = PackOptions.parse("q3", "q8", 32, experts_bits=3.0)
    with pytest.raises(UsageError, match="beside formats"):
        pack_checkpoint(checkpoint, tmp_path / "p", options, calibration=inputs)
