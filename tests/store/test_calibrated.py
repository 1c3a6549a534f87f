"""Calibrated packing: end to end on the embedded model's twin, resumed, and its typed errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.errors import CheckpointError, UsageError
from flashmoe.quant import Format, gptq
from flashmoe.store.calibration import Calibration, CalibrationWriter
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions
from tests.support.tiny_checkpoints import write_checkpoint

FORMATS = pytest.mark.parametrize("fmt", [Format("q2", 64), Format("q3", 64), Format("q4", 64)])


@FORMATS
def test_rounding_with_an_eye_on_the_inputs_loses_less(fmt: Format) -> None:
    rng = np.random.default_rng(80)
    w = rng.standard_normal((16, 128)).astype(np.float32)
    x = (rng.standard_normal((400, 24)) @ rng.standard_normal((24, 128))).astype(np.float32)
    x += rng.standard_normal(x.shape).astype(np.float32)
    plain = fmt.decode(fmt.encode(w), *w.shape)
    moments = (x.T @ x).astype(np.float64) / len(x)
    aware = fmt.decode(gptq.encode(w, moments, fmt), *w.shape)
    lost = [float(np.square(x @ (q - w).T).mean()) for q in (plain, aware)]
    assert lost[1] < 0.5 * lost[0]


@FORMATS
def test_any_moments_will_do(fmt: Format) -> None:
    w = np.random.default_rng(81).standard_normal((8, 64)).astype(np.float32)
    stored = gptq.encode(w, np.zeros((64, 64)), fmt)
    assert np.abs(fmt.decode(stored, 8, 64) - w).mean() < 0.5


def calibration(path: Path, hidden: int, experts: int, layers: int, k: int = 2) -> Path:
    rng = np.random.default_rng(82)
    writer = CalibrationWriter(path, [*range(layers)], (96, hidden, k))
    writer.open({"text": "random numbers"})
    for layer in range(layers):
        for _ in range(2):
            ids = rng.integers(0, experts - 1, (48, k), dtype=np.int32)
            x = rng.standard_normal((48, hidden)).astype(np.float32)
            writer.add(layer, ids, x, np.full((48, k), 0.5, np.float32))
    writer.finish()
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_checkpoint(tmp_path_factory.mktemp("source") / "tiny", "qwen3_moe")
    (source / "tokenizer.json").unlink()  # a stand-in for bytes, no tokenizer
    return source


@pytest.fixture(scope="module")
def inputs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    pack_checkpoint(checkpoint, folder / "bf16", PackOptions.parse("bf16", "bf16", 32))
    layout = PackedModel.open(folder / "bf16").manifest
    shape = layout.experts.hidden_size, layout.experts.num_experts
    return calibration(folder / "inputs", *shape, len(layout.layers))


def test_a_calibrated_pack_says_so_and_runs(checkpoint: Path, inputs: Path, tmp_path: Path) -> None:
    options = PackOptions.parse("q2", "q8", 32, "q3")
    pack_checkpoint(checkpoint, tmp_path / "pack", options, calibration=inputs)
    manifest = PackedModel.open(tmp_path / "pack").manifest
    assert manifest.version == 4
    assert manifest.calibration.startswith("random numbers; sha256 ")
    assert (manifest.experts.gate_up.name, manifest.experts.down.name) == ("q2", "q3")
    with flashmoe.load(tmp_path / "pack") as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()


def test_interrupted_it_goes_on_to_the_same_bytes(
    checkpoint: Path, inputs: Path, tmp_path: Path
) -> None:
    options = PackOptions.parse("q3", "q8", 32)
    pack_checkpoint(checkpoint, tmp_path / "whole", options, calibration=inputs)

    class Stop(Exception):
        pass

    def stop_late(done: int, total: int) -> None:
        if done > 0.7 * total:
            raise Stop

    with pytest.raises(Stop):
        pack_checkpoint(
            checkpoint, tmp_path / "cut", options, stop_late, sync_bytes=1, calibration=inputs
        )
    pack_checkpoint(checkpoint, tmp_path / "cut", options, calibration=inputs)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes()


def test_errors_are_typed(checkpoint: Path, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no calibration file"):
        Calibration(tmp_path / "none")
    (tmp_path / "text").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="not a calibration file"):
        Calibration(tmp_path / "text")
    (tmp_path / "short").write_bytes(inputs.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        Calibration(tmp_path / "short")
    other = calibration(tmp_path / "other", 32, 4, 1)
    options = PackOptions.parse("q2", "q8", 32)
    with pytest.raises(UsageError, match="of another model"):
        pack_checkpoint(checkpoint, tmp_path / "pack", options, calibration=other)
    options = PackOptions.parse("q8", "q8", 32)
    with pytest.raises(UsageError, match="does not fit these experts"):
        pack_checkpoint(checkpoint, tmp_path / "q8", options, calibration=inputs)
