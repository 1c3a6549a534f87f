from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.errors import FlashMoeError, PackError
from flashmoe.quant import Format
from flashmoe.store.format import (
    ExpertLayer,
    ExpertLayout,
    Manifest,
    Matrix,
    SmallFile,
    Vector,
)
from flashmoe.store.manifest import from_json, to_json

Q4, Q8, BF16 = Format("q4", 64), Format("q8", 64), Format("bf16")
MANIFEST = Manifest(
    family="qwen3_moe",
    source_name="tiny",
    experts_format=Q4,
    dense_format=Q8,
    tensors={"a": Matrix(Q8, 10, 64, 1), "b": Matrix(BF16, 3, 2, 2), "c": Vector((2, 3), 3)},
    experts=ExpertLayout(2, 64, 128, Q4, Q8),
    layers=(ExpertLayer(1, (4, 5)), ExpertLayer(3, (6, 7))),
    files={"config.json": SmallFile(9, "00ff")},
)
TEXT = to_json(MANIFEST)
RAW = json.loads(TEXT)


def test_round_trip() -> None:
    assert from_json(TEXT.encode()) == MANIFEST


def test_sizes() -> None:
    layout = MANIFEST.experts
    assert layout.gate_up_bytes == 256 * 36
    assert layout.down_offset == 9216
    assert layout.down_bytes == 64 * 2 * 68
    assert layout.record_bytes == 20480
    assert MANIFEST.tensor_offsets() == {"a": 0, "b": 16 * 68, "c": 16 * 68 + 64}
    assert MANIFEST.resident_bytes == 16 * 68 + 64 + 24


def test_offsets_beyond_4_gib() -> None:
    layout = ExpertLayout(512, 8192, 8192, BF16, BF16)
    assert layout.record_bytes * layout.num_experts == 3 * 2 * 8192 * 8192 * 512


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield prefix
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*prefix, key))


def edited(path: tuple[Any, ...], value: Any) -> bytes:
    """The manifest with one value replaced, or removed if it is `...`."""
    raw = copy.deepcopy(RAW)
    parent = raw
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return json.dumps(raw).encode()


_PATHS = [path for path in paths(RAW) if path]


@pytest.mark.parametrize("path", _PATHS, ids=lambda path: ".".join(map(str, path)))
def test_every_value_is_required_and_typed(path: tuple[Any, ...]) -> None:
    for value in (..., None, True, -1, 1.5, "", [], {}, [[]], 2**70):
        if value is ... and path in (("tensors", "a"), ("tensors", "b"), ("tensors", "c")):
            continue  # which tensors there are is for the family to say
        if value is ... and isinstance(path[-1], int) and path[-2] == "layers":
            continue
        if value is ... and path[:3] == ("tensors", "c", "shape") and len(path) == 4:
            continue
        with pytest.raises(PackError, match=r"flashmoe\.json"):
            from_json(edited(path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "other", "expected flashmoe"),
        (
            ("version",),
            7,
            r"unknown format version; expected 1 \| 2 \| 3 \| 4 \| 5 \| 6, got 7.*Pack the model",
        ),
        (("version",), 2, "activation"),
        (("new",), 1, "unknown key; got new"),
        (("tensors", "a", "group"), 48, "group"),
        (("tensors", "a", "group"), 32, "nbytes"),
        (("tensors", "a", "format"), "q4", "nbytes"),
        (("tensors", "a", "shape"), [10, 63], "shape"),
        (("tensors", "a", "shape"), [2**31, 64], "shape"),
        (("tensors", "a", "nbytes"), 1, "expected 1088, got 1"),
        (("tensors", "b", "group"), 64, "group"),
        (("tensors", "c", "nbytes"), 24, "unknown key"),
        (("tensors", "z"), RAW["tensors"]["a"], "a matrix follows a vector"),
        (("experts", "record_bytes"), 24576, "expected 20480"),
        (("experts", "down_offset"), 9280, "expected 9216"),
        (("experts", "hidden_size"), 65, "hidden_size"),
        (("experts", "intermediate_size"), 132, "intermediate_size.*expected a multiple of 8"),
        (("experts", "layers", 0, "file"), "../x", "expected experts-001.safetensors"),
        (("experts", "layers", 0, "crc32c"), [1], "expected 2 checksums, got 1"),
        (("experts", "layers", 0, "crc32c"), [1, 2**32], "integer in"),
        (("experts", "layers"), RAW["experts"]["layers"][::-1], "ascending"),
        (("files", "../../x"), {"bytes": 1, "sha256": "0"}, "unknown file"),
        (("files", "config.json", "bytes"), 2**40, "integer in"),
        (("source", "name"), "a\x1b[2Jb", "without control characters"),
        (("source", "name"), "\ud800", "without control characters"),
    ],
)
def test_contradictions(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(PackError, match=message):
        from_json(edited(path, value))


def sharing(crc: list[int]) -> bytes:
    """The manifest whose second layer names the file of the first."""
    raw = copy.deepcopy(RAW)
    first, second = raw["experts"]["layers"][:2]
    second.update(file=first["file"], crc32c=crc)
    return json.dumps(raw).encode()


def test_a_layer_may_share_an_earlier_file() -> None:
    first, second = from_json(sharing(RAW["experts"]["layers"][0]["crc32c"])).layers[:2]
    assert (second.shares, second.file) == (first.layer, first.file)
    manifest = from_json(sharing(list(first.crc32c)))
    assert from_json(to_json(manifest).encode()) == manifest


def test_shared_files_have_one_list_of_checksums() -> None:
    crc = RAW["experts"]["layers"][0]["crc32c"]
    with pytest.raises(PackError, match="expected the checksums of layer"):
        from_json(sharing([value ^ 1 for value in crc]))


def test_a_later_file_cannot_be_shared() -> None:
    later = RAW["experts"]["layers"][1]["file"]
    with pytest.raises(PackError, match="file"):
        from_json(edited(("experts", "layers", 0, "file"), later))


BIASED = dataclasses.replace(
    MANIFEST,
    experts=dataclasses.replace(MANIFEST.experts, activation="swiglu_clamped", bias=True),
)


def test_version_2_says_what_experts_are_beyond_version_1() -> None:
    text = to_json(BIASED)
    assert json.loads(text)["version"] == 2
    assert from_json(text.encode()) == BIASED
    layout = BIASED.experts
    assert layout.bias_offset == 9216 + 64 * 2 * 68
    assert layout.bias_bytes == 4 * (256 + 64)
    assert layout.record_bytes == 20480


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "unknown key; got activation, bias_offset"),
        ({"experts": {"activation": "relu"}}, "activation"),
        ({"experts": {"activation": "swiglu", "bias_offset": 0}}, "version"),
        ({"experts": {"bias_offset": 64}}, "bias_offset"),
        ({"experts": {"bias_offset": None}}, "bias_offset"),
    ],
)
def test_contradictions_of_version_2(change: dict[str, Any], message: str) -> None:
    raw = json.loads(to_json(BIASED))
    raw |= change | {"experts": raw["experts"] | change.get("experts", {})}
    with pytest.raises(PackError, match=message):
        from_json(json.dumps(raw).encode())


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_text_raises_typed_errors_only(data: st.DataObject) -> None:
    text = bytearray(TEXT.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    _read_or_typed_error(bytes(text))


@settings(max_examples=400, deadline=None)
@given(
    path=st.sampled_from(_PATHS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_mutated_values_raise_typed_errors_only(path: tuple[Any, ...], value: Any) -> None:
    _read_or_typed_error(edited(path, value))


def _read_or_typed_error(text: bytes) -> None:
    try:
        manifest = from_json(text)
    except FlashMoeError as error:
        str(error).encode("utf-8")
        return
    for name, (header, size) in manifest.data_files().items():
        assert Path(name).name == name
        assert len(header) % 4096 == 0
        assert len(header) <= size
