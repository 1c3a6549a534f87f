"""Headers that others wrote, damaged at random: typed errors only, and little memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.checkpoint.safetensors import header_length, parse_header
from flashmoe.demo import demo_model_path
from flashmoe.errors import CheckpointError, FlashMoeError
from flashmoe.models.registry import family_name, load_family
from flashmoe.store.format import MANIFEST
from flashmoe.store.manifest import from_json
from flashmoe.strict_json import parse
from flashmoe.text.tokenizer import Tokenizer
from tests.support.tiny_checkpoints import CONFIGS

WHERE = Path("fuzzed")
# A few hundred bytes of input shall not become more than this.
MEMORY = 32 << 20
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(2**53)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
)
HEADER = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def only_typed_errors(call: Callable[[], object]) -> None:
    tracemalloc.start()
    try:
        call()
    except FlashMoeError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


@given(st.binary(max_size=300))
def test_bytes_as_json(data: bytes) -> None:
    only_typed_errors(lambda: parse_header(data, 16, WHERE))
    only_typed_errors(lambda: from_json(data))


@given(st.binary(max_size=16), st.integers(0, 2**63))
def test_header_lengths(start: bytes, size: int) -> None:
    data = start.ljust(8, b"\xff")
    only_typed_errors(lambda: header_length(data, size, WHERE))
    assert struct.unpack_from("<Q", data)


@given(st.sampled_from(["dtype", "shape", "data_offsets"]), VALUES)
def test_fields_of_safetensors(key: str, value: Any) -> None:
    data = json.dumps({"a": {**HEADER["a"], key: value}}).encode()
    only_typed_errors(lambda: parse_header(data, 16, WHERE))


@settings(max_examples=400)
@given(st.data())
def test_fields_of_config(data: st.DataObject) -> None:
    config = dict(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))])
    key = data.draw(st.sampled_from(sorted(config)))
    config[key] = data.draw(VALUES)
    text = json.dumps(config).encode()

    def read() -> None:
        raw = parse(text, WHERE, CheckpointError)
        load_family(family_name(raw)).read_config(raw)

    only_typed_errors(read)


@given(st.data())
def test_fields_of_flashmoe_json(data: st.DataObject) -> None:
    raw = json.loads((demo_model_path() / MANIFEST).read_bytes())
    place = raw["experts"] if data.draw(st.booleans()) else raw
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(VALUES)
    text = json.dumps(raw).encode()
    only_typed_errors(lambda: from_json(text))


@settings(max_examples=50)
@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_tokenizer_json(text: bytes) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_bytes(text)
        only_typed_errors(lambda: Tokenizer(Path(folder)))
