"""Calibration files: what is no such file, or is damaged, is refused with a typed error."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmoe.errors import CheckpointError, UsageError
from flashmoe.store.calibration import Calibration, CalibrationWriter

HIDDEN, EXPERTS, K, TOKENS = 16, 4, 2, 6
LAYER = {"x": np.dtype("<u2"), "ids": np.dtype("<i4"), "weights": np.dtype("<f4")}


def written(path: Path) -> Path:
    rng = np.random.default_rng(90)
    writer = CalibrationWriter(path, [0, 1], (TOKENS, HIDDEN, K))
    writer.open({"text": "random"})
    for layer in (0, 1):
        ids = rng.integers(0, EXPERTS, (TOKENS, K), dtype=np.int32)
        x = rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32)
        writer.add(layer, ids, x, np.full((TOKENS, K), 0.5, np.float32))
    writer.finish()
    return path


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:length]), data[length:]


def with_header(path: Path, head: dict[str, Any], body: bytes) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def read(path: Path) -> None:
    found = Calibration(path)
    for layer in (0, 1):
        inputs = found.layer(layer, HIDDEN, EXPERTS)
        x, weights = inputs.of_expert(1)
        assert np.isfinite(x).all()
        assert np.isfinite(weights).all()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_any_bytes_are_read_or_refused(tmp_path: Path, position: int, junk: bytes) -> None:
    path = written(tmp_path / "c")
    data = bytearray(path.read_bytes())
    data[position : position + len(junk)] = junk
    path.write_bytes(data)
    with suppress(CheckpointError, UsageError):
        read(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5000))
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = written(tmp_path / "c")
    data = path.read_bytes()
    path.write_bytes(data[: min(length, len(data) - 1)])
    with pytest.raises(CheckpointError):
        read(path)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("x", {"dtype": "F32"}),
        ("x", {"shape": [TOKENS * HIDDEN]}),
        ("x", {"shape": [-TOKENS, -HIDDEN]}),
        ("x", {"shape": [HIDDEN, TOKENS]}),
        ("ids", {"shape": [TOKENS * K, 1]}),
        ("weights", {"data_offsets": [-48, 0]}),
        ("weights", {"data_offsets": [1 << 60, (1 << 60) + 48]}),
        ("weights", {"data_offsets": "here"}),
        ("ids", {"shape": None}),
        ("ids", {"dtype": ["I32"]}),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, name: str, entry: dict[str, Any]) -> None:
    path = written(tmp_path / "c")
    head, body = header(path)
    head[f"layers.0.{name}"] |= entry
    with_header(path, head, body)
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)


@pytest.mark.parametrize(
    ("name", "value"), [("x", 0x7F80), ("x", 0xFFC0), ("weights", np.nan), ("ids", -1)]
)
def test_what_is_no_number_is_refused(tmp_path: Path, name: str, value: float) -> None:
    path = written(tmp_path / "c")
    head, body = header(path)
    start = head[f"layers.1.{name}"]["data_offsets"][0]
    size = LAYER[name].itemsize
    wrong = np.array([value]).astype(LAYER[name]).tobytes()
    with_header(path, head, body[:start] + wrong + body[start + size :])
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)
