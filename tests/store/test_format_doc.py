"""docs/format.md is enough: a reader written from it alone, without the package, decodes a pack."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashmoe.quant import Format
from flashmoe.store.format import ExpertFormats
from flashmoe.store.plan import PackOptions
from tests.store.support import make_pack
from tests.support.tiny_checkpoints import CONFIGS, make_tensors


def align(n: int, m: int) -> int:
    return (n + m - 1) // m * m


def bf16(two: bytes) -> float:
    return float(struct.unpack("<f", b"\0\0" + two)[0])


def read_matrix(data: bytes, f: dict[str, Any], rows: int, cols: int) -> NDArray[np.float32]:
    """§3, one weight at a time."""
    out, g = np.empty((rows, cols), np.float32), f["group"]
    for row in range(rows):
        for col in range(cols):
            out[row, col] = read_weight(data, f["format"], g, cols, row, col)
    return out


def read_weight(data: bytes, name: str, g: int, cols: int, row: int, col: int) -> float:
    block, r = divmod(row, 8)
    if name == "bf16":
        at = block * 8 * 2 * cols + (col // 2) * 32 + r * 4 + (col % 2) * 2
        return bf16(data[at : at + 2])
    group, c = divmod(col, g)
    if name == "mxfp4":
        start = (block * (cols // 32) + group) * 136
        byte = data[start + c // 8 * 32 + r * 4 + c % 4]
        code = byte >> 4 if c % 8 >= 4 else byte & 15
        sign = -1.0 if code >= 8 else 1.0
        value = (0, 0.5, 1, 1.5, 2, 3, 4, 6)[code % 8] * 2.0 ** (data[start + 128 + r] - 127)
        return sign * value
    size = 8 * g + 32 if name == "q8" else 4 * g + 32
    start = (block * (cols // g) + group) * size
    if name == "q8":
        (code,) = struct.unpack_from("<b", data, start + c // 4 * 32 + r * 4 + c % 4)
        (scale,) = struct.unpack_from("<f", data, start + 8 * g + 4 * r)
        return float(np.float32(code) * np.float32(scale))
    byte = data[start + c // 8 * 32 + r * 4 + c % 4]
    code = byte >> 4 if c % 8 >= 4 else byte & 15
    scale = bf16(data[start + 4 * g + 2 * r :][:2])
    bias = bf16(data[start + 4 * g + 16 + 2 * r :][:2])
    return float(np.float32(code) * np.float32(scale) + np.float32(bias))


FORMATS = [("q4", "q8", 32), ("q8", "q4", 64), ("bf16", "bf16", 64)]


@pytest.mark.parametrize("formats", [*FORMATS, ("mxfp4", "mxfp4", 64)])
def test_a_reader_written_from_the_document(tmp_path: Path, formats: tuple[str, str, int]) -> None:
    pack = make_pack(tmp_path, "qwen3_moe", PackOptions.parse(*formats)).path
    manifest = json.loads((pack / "flashmoe.json").read_text())
    tensors = make_tensors(CONFIGS["qwen3_moe"])

    raw = (pack / "resident.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    assert (8 + length) % 4096 == 0
    at = 8 + length
    for name, f in manifest["tensors"].items():
        if f["format"] == "f32":
            found = np.frombuffer(raw, "<f4", int(np.prod(f["shape"])), at).reshape(f["shape"])
            np.testing.assert_array_equal(found, tensors[f"model.{name}.weight"])
            at += found.nbytes
            continue
        if name in ("layers.0.self_attn.k_proj", "layers.1.mlp.gate", "lm_head"):
            source = "lm_head.weight" if name == "lm_head" else f"model.{name}.weight"
            found = read_matrix(raw[at:], f, *f["shape"])
            np.testing.assert_array_equal(found, expected(f, tensors[source]))
        at += align(f["nbytes"], 64)
    assert at == len(raw)

    check_expert(pack, manifest, tensors, layer=1, expert=4)


def test_layers_that_differ(tmp_path: Path) -> None:
    own = {1: ExpertFormats(Format("q4", 32), Format("q8", 64))}
    options = dataclasses.replace(PackOptions.parse("q4", "q8", 32), by_layer=own)
    pack = make_pack(tmp_path, "qwen3_moe", options).path
    manifest = json.loads((pack / "flashmoe.json").read_text())
    sizes = {manifest["experts"]["record_bytes"]}
    sizes |= {layer.get("record_bytes") for layer in manifest["experts"]["layers"]} - {None}
    assert len(sizes) == 2
    for layer in (0, 1):
        check_expert(pack, manifest, make_tensors(CONFIGS["qwen3_moe"]), layer=layer, expert=4)


def check_expert(pack: Path, manifest: Any, tensors: Any, layer: int, expert: int) -> None:
    # §2: what a layer says of itself counts for it.
    experts = {**manifest["experts"], **manifest["experts"]["layers"][layer]}
    hidden, inner = experts["hidden_size"], experts["intermediate_size"]
    raw = (pack / experts["file"]).read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    record = raw[8 + length + expert * experts["record_bytes"] :][: experts["record_bytes"]]
    gate_up = read_matrix(record, experts["gate_up"], 2 * inner, hidden)
    down = read_matrix(record[experts["down_offset"] :], experts["down"], hidden, inner)
    stem = f"model.layers.{layer}.mlp.experts.{expert}."
    for row in range(inner):
        block, r = divmod(row, 8)
        for part, at in (("gate", 16 * block + r), ("up", 16 * block + 8 + r)):
            source = tensors[f"{stem}{part}_proj.weight"]
            np.testing.assert_array_equal(gate_up[at], expected(experts["gate_up"], source)[row])
    source = tensors[f"{stem}down_proj.weight"]
    np.testing.assert_array_equal(down, expected(experts["down"], source))


def expected(f: dict[str, Any], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the format makes of the weights."""
    format_ = Format(f["format"], f["group"])
    return format_.decode(format_.encode(w), *w.shape)


def test_biases_are_where_the_document_says(tmp_path: Path) -> None:
    pack = make_pack(tmp_path, "gpt_oss", PackOptions.parse("q4", "q8", 32)).path
    experts = json.loads((pack / "flashmoe.json").read_text())["experts"]
    tensors, (e, hidden, inner) = make_tensors(CONFIGS["gpt_oss"]), (5, 64, 64)
    raw = (pack / experts["layers"][1]["file"]).read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    record = raw[8 + length + e * experts["record_bytes"] :][: experts["record_bytes"]]
    assert experts["activation"] == "swiglu_clamped"
    assert experts["bias_offset"] == align(experts["down_offset"] + hidden * inner // 32 * 20, 64)
    found = struct.unpack_from(f"<{2 * inner + hidden}f", record, experts["bias_offset"])
    stem = "model.layers.1.mlp.experts"
    for row in range(inner):
        block, r = divmod(row, 8)
        gate, up = tensors[f"{stem}.gate_up_proj_bias"][e, 2 * row : 2 * row + 2]
        assert (found[16 * block + r], found[16 * block + 8 + r]) == (gate, up)
    assert found[2 * inner :] == tuple(tensors[f"{stem}.down_proj_bias"][e])
    end = experts["bias_offset"] + 4 * (2 * inner + hidden)
    assert record[end:] == bytes(experts["record_bytes"] - end)
