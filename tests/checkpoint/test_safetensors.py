from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from flashmoe.checkpoint.safetensors import (
    MAX_HEADER,
    TensorFile,
    parse_header,
    to_float32,
)
from flashmoe.errors import CheckpointError, FlashMoeError, StorageError

VALID = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "empty": {"dtype": "U8", "shape": [0, 7], "data_offsets": [32, 32]},
}
DATA_BYTES = 32


def file_bytes(header: Any, data: bytes = bytes(DATA_BYTES)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def open_bytes(path: Path, content: bytes) -> TensorFile:
    path.write_bytes(content)
    return TensorFile(path)


def test_reads_what_the_stock_library_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((3, 5)).astype(np.float32),
        "y": rng.integers(0, 255, (7,), np.uint8),
        "z": rng.standard_normal((2, 2, 2)).astype(np.float16),
    }
    save_file(arrays, tmp_path / "t.safetensors", metadata={"format": "np"})
    file = TensorFile(tmp_path / "t.safetensors")
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor = file.tensors[name]
        assert tensor.shape == array.shape
        assert file.read(tensor.offset, tensor.nbytes).tobytes() == array.tobytes()
    file.close()


def test_reads_any_order_of_entries(tmp_path: Path) -> None:
    header = dict(reversed(VALID.items()))
    file = open_bytes(tmp_path / "t", file_bytes(header))
    start = file.size - DATA_BYTES
    assert {n: t.offset - start for n, t in file.tensors.items()} == {"a": 0, "b": 24, "empty": 32}
    file.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": {**VALID["a"], "data_offsets": [0, 20]}}, "contradicts the shape"),
        ({"a": {**VALID["a"], "data_offsets": [0]}}, "bad shape or range"),
        ({"a": {**VALID["a"], "data_offsets": [24, 0]}}, "bad shape or range"),
        ({"a": {**VALID["a"], "data_offsets": [-4, 20]}}, "data_offsets"),
        ({"a": {**VALID["a"], "shape": [2, True]}}, "shape"),
        ({"a": {**VALID["a"], "shape": [2, 3.0]}}, "shape"),
        ({"a": {**VALID["a"], "shape": [2, -3]}}, "shape"),
        ({"a": {**VALID["a"], "shape": [1] * 9}}, "bad shape or range"),
        ({"a": {**VALID["a"], "shape": [2**53, 2**53]}}, "contradicts the shape"),
        ({"a": {**VALID["a"], "dtype": "F4"}}, "dtype"),
        ({"a": {**VALID["a"], "dtype": ["F32"]}}, "dtype"),
        ({"a": {**VALID["a"], "extra": 1}}, "unknown key"),
        ({"a": {"dtype": "F32", "shape": [2, 3]}}, "data_offsets: field is missing"),
        ({"a": 7}, "an object"),
        ({"b": {**VALID["b"], "data_offsets": [23, 31]}}, "overlap"),
        ({"b": {**VALID["b"], "data_offsets": [25, 33]}}, "hole"),
        ({"c": {"dtype": "U8", "shape": [1], "data_offsets": [32, 33]}}, "truncated"),
    ],
)
def test_refuses_bad_entries(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_bytes(tmp_path / "t", file_bytes({**VALID, **change}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"\0" * 7, "truncated"),
        (struct.pack("<Q", 1) + b"{", "not valid JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "not valid JSON"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header length"),
        (struct.pack("<Q", 3) + b"{}", "header length"),
        (file_bytes(VALID) + b"\0", "after the last tensor"),
        (file_bytes(VALID)[:-1], "truncated"),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "duplicate key"),
        (struct.pack("<Q", 9) + b'{"a":NaN}', "NaN is not JSON"),
        (struct.pack("<Q", 14) + b'{"\\ud800":1   }', "not valid JSON"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_refuses_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_bytes(tmp_path / "t", content)


def test_header_length_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER + 1))
        file.truncate(MAX_HEADER * 4)  # sparse: only the limit can refuse it
    with pytest.raises(CheckpointError, match=f"at most {MAX_HEADER}"):
        TensorFile(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = file_bytes(VALID)
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            open_bytes(tmp_path / "t", content[:length])


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        TensorFile(tmp_path / "absent")


def test_a_file_that_cannot_be_read_is_closed_again(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StorageError, match=r"cannot read.*Is a directory"):
        TensorFile(tmp_path / "model.safetensors")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_file_that_shrinks_while_open_is_a_storage_error(tmp_path: Path) -> None:
    file = open_bytes(tmp_path / "t", file_bytes(VALID))
    (tmp_path / "t").write_bytes(file_bytes(VALID)[:-4])
    tensor = file.tensors["b"]
    with pytest.raises(StorageError, match="ends too early"):
        file.read(tensor.offset, tensor.nbytes)
    file.close()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_headers_raise_typed_errors_only(data: st.DataObject) -> None:
    header = bytearray(json.dumps(VALID).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(header) - 1))
        header[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not header:
            break
    _parse_or_typed_error(bytes(header))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(value=_JSON)
def test_arbitrary_json_headers_raise_typed_errors_only(value: Any) -> None:
    _parse_or_typed_error(json.dumps(value).encode())


def _parse_or_typed_error(header: bytes) -> None:
    try:
        tensors = parse_header(header, DATA_BYTES, Path("fuzzed"))
    except FlashMoeError as error:
        str(error).encode("utf-8")
        return
    assert sum(t.nbytes for t in tensors.values()) == DATA_BYTES


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_to_float32_is_exact(dtype: str) -> None:
    numbers = np.array([[0.0, -0.0, 1.5, -2.0], [2.0**-14, 3.0, -0.15625, 240.0]], np.float32)
    if dtype == "BF16":
        raw = np.ascontiguousarray(numbers).view(np.uint16)[:, 1::2].copy().view(np.uint8)
    else:
        raw = numbers.astype("<f2" if dtype == "F16" else "<f4").view(np.uint8)
    found = to_float32(raw, dtype)
    assert found.dtype == np.float32
    assert found.tobytes() == numbers.tobytes()
