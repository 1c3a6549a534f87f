"""FP8 checkpoints: what is packed is what the codes and scales mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flashmoe.errors import CheckpointError, ConfigError, NonFiniteError
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.plan import PackOptions
from tests.store.support import contents
from tests.support.fp8 import write_pair
from tests.support.tiny_checkpoints import write_checkpoint

FORMATS = [("bf16", "bf16", 64), ("q8", "q8", 32), ("q4", "q4", 32)]
NAME = "model.layers.0.self_attn.kv_b_proj.weight"


def entry(file: Path, name: str) -> tuple[int, int]:
    """Where a tensor lies in a safetensors file."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    return 8 + length + begin, 8 + length + end


@pytest.mark.parametrize("formats", FORMATS, ids=lambda formats: formats[0])
def test_packs_to_the_same_bytes_as_what_it_means(
    tmp_path: Path, formats: tuple[str, str, int]
) -> None:
    data = []
    for source in write_pair(tmp_path):
        pack = tmp_path / f"{source.name}.pack"
        pack_checkpoint(source, pack, PackOptions.parse(*formats))
        files = contents(pack)
        data.append({n: files[n] for n in files if n.endswith(".safetensors")})
    assert data[0] == data[1]


def test_a_code_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path)
    file = source / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[entry(file, NAME)[0] + 64 * 200 + 3] = 0x7F  # row 200 of 64 columns
    file.write_bytes(raw)
    with pytest.raises(NonFiniteError, match=r"kv_b_proj\.weight: .*nan at row 200, column 3"):
        pack_checkpoint(source, tmp_path / "pack", PackOptions.parse("q4", "q8", 32))


def test_missing_scales_are_named(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path)
    file = source / "model.safetensors"
    raw = file.read_bytes().replace(f"{NAME}_scale_inv".encode(), f"{NAME}_scale_lnv".encode())
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"missing; expected .*kv_b_proj\.weight_scale_inv"):
        pack_checkpoint(source, tmp_path / "pack", PackOptions.parse("q4", "q8", 32))


def test_shapes_of_scales_are_checked(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path)
    config = json.loads((source / "config.json").read_text()) | {"v_head_dim": 96}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="config contradicts the tensor's shape"):
        pack_checkpoint(source, tmp_path / "pack", PackOptions.parse("q4", "q8", 32))


def test_multi_token_prediction_is_left_out(tmp_path: Path) -> None:
    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.3.eh_proj.weight"] = np.ones((64, 128), np.float32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    source = write_checkpoint(tmp_path / "source", "deepseek_v3", change=add)
    pack_checkpoint(source, tmp_path / "pack", PackOptions.parse("q4", "q8", 32))
