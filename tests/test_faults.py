"""Whatever a disk does: a typed error that names the place, or the right answer; nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe.api import Model
from flashmoe.errors import (
    ChecksumError,
    ConfigError,
    FlashMoeError,
    PackError,
    StorageError,
    UsageError,
)
from flashmoe.store.format import MANIFEST, RESIDENT
from flashmoe.store.packed import PackedModel
from tests.support import damage
from tests.support.fake_reader import FakeReader, Fault
from tests.support.packs import (
    TinyPacks,
    Transcript,
    assert_same_bits,
    copy_of,
    load_with,
    some_ids,
    transcript,
)

PROMPT = some_ids(20)
STEPS = 4
LAYER_1 = "experts-001.safetensors"


@pytest.fixture
def pack(tiny: Path, tmp_path: Path) -> Path:
    """A pack to damage."""
    return copy_of(tiny, tmp_path / "pack")


@pytest.fixture(scope="module")
def expected(tiny_packs: TinyPacks, family: str) -> Transcript:
    with flashmoe.load(tiny_packs.get(family)) as model:
        return transcript(model, PROMPT, STEPS)


# At load.


def refused(pack: Path, kind: type[FlashMoeError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        flashmoe.load(pack)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [RESIDENT, LAYER_1, "config.json", "generation_config.json"])
def test_missing_truncated_and_longer_files(pack: Path, name: str) -> None:
    content = (pack / name).read_bytes()
    (pack / name).write_bytes(content[:-1])
    refused(pack, PackError, str(pack / name), "truncated", f"expected {len(content)} bytes")
    (pack / name).write_bytes(content + b"\0")
    refused(pack, PackError, str(pack / name), "too long")
    (pack / name).unlink()
    refused(pack, PackError, str(pack / name), "missing")
    (pack / name).mkdir()
    with pytest.raises((PackError, StorageError), match=name):
        flashmoe.load(pack)


def test_no_manifest_and_no_directory(pack: Path) -> None:
    refused(pack / "absent", UsageError, str(pack / "absent"), "not a directory")
    (pack / MANIFEST).write_text("{")
    refused(pack, PackError, MANIFEST)
    (pack / MANIFEST).unlink()
    refused(pack, PackError, str(pack), f"no {MANIFEST}", "flashmoe pack")


def test_a_flipped_bit_of_every_resident_tensor_is_seen(pack: Path) -> None:
    manifest = PackedModel.open(pack).manifest
    start = len(manifest.resident_header())
    for name, offset in manifest.tensor_offsets().items():
        damage.flip_bit(pack / RESIDENT, start + offset)
        refused(pack, ChecksumError, f"{pack / RESIDENT}: {name}: checksum does not match")
        damage.flip_bit(pack / RESIDENT, start + offset)
    flashmoe.load(pack).close()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"hidden_size": 128}, PackError, "embed_tokens"),
        ({"vocab_size": 200}, PackError, "embed_tokens"),
        (
            {"num_hidden_layers": 1, "layer_types": None, "first_k_dense_replace": 0},
            PackError,
            "layers",
        ),
        ({"num_experts": 8}, PackError, r"mlp\.(gate|router)"),
        # gpt-oss calls it intermediate_size, which the others have for dense layers they lack.
        (
            {"moe_intermediate_size": 32, "intermediate_size": 32},
            PackError,
            r"experts of layer 0|layers\.0\.mlp\.down_proj",
        ),
        ({"head_dim": 16, "v_head_dim": 16}, PackError, "self_attn"),
        ({"num_experts_per_tok": 17}, ConfigError, "num_experts_per_tok"),
        ({"num_key_value_heads": 3}, ConfigError, "num_key_value_heads"),
        ({"hidden_act": "gelu"}, ConfigError, "hidden_act"),
        ({"model_type": "llama"}, ConfigError, "model_type"),
    ],
)
def test_a_config_that_contradicts_the_manifest(
    pack: Path, change: dict[str, Any], kind: Any, message: str
) -> None:
    damage.change_config(pack, **change)
    with pytest.raises(kind, match=message):
        flashmoe.load(pack)


def test_another_family_in_the_manifest(pack: Path, family: str) -> None:
    other = "qwen3_5_moe" if family == "qwen3_moe" else "qwen3_moe"
    damage.change_manifest(pack, lambda manifest: manifest.update(family=other))
    with pytest.raises(PackError, match=rf"family: .*expected {family}, got {other}"):
        flashmoe.load(pack)
    damage.change_manifest(pack, lambda manifest: manifest.update(family="llama"))
    with pytest.raises((PackError, ConfigError), match="llama"):
        flashmoe.load(pack)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_tokenizer_that_is_none(pack: Path, text: str) -> None:
    damage.replace_text(pack, "tokenizer.json", text)
    with pytest.raises(PackError, match=r"tokenizer\.json"):
        flashmoe.load(pack)


@pytest.fixture
def nobody() -> Iterator[Callable[[Path], None]]:
    """Root may read everything: be somebody else for the rest of the test."""
    was_root = os.geteuid() == 0

    def become(pack: Path) -> None:
        for folder in pack.parents:
            if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001:
                folder.chmod(0o711)
        if was_root:
            os.seteuid(65534)

    yield become
    if was_root:
        os.seteuid(0)


@pytest.mark.parametrize("name", [MANIFEST, RESIDENT, LAYER_1, "config.json"])
def test_unreadable_files(pack: Path, name: str, nobody: Callable[[Path], None]) -> None:
    (pack / name).chmod(0)
    nobody(pack)
    refused(pack, StorageError, str(pack / name), "Permission denied")


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_unreadable_directory(pack: Path, mode: int, nobody: Callable[[Path], None]) -> None:
    pack.chmod(mode)
    nobody(pack)
    with pytest.raises(StorageError, match=f"{pack}.*Permission denied"):
        flashmoe.load(pack)
    with pytest.raises(StorageError, match=f"{pack}.*Permission denied"):
        flashmoe.load(pack / "inner")


# While generating.


def goes_on(model: Model, expected: Transcript) -> None:
    """After an error, a new session gives the right answer."""
    assert_same_bits(transcript(model, PROMPT, STEPS), expected)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault.EIO, StorageError, "could not be read: Input/output error"),
        (Fault.SHORT, StorageError, "the file ends inside an expert"),
        (Fault.FLIP, ChecksumError, "an expert is damaged"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_failing_read_breaks_the_session_and_not_the_model(
    pack: Path, expected: Transcript, fault: Fault, kind: Any, message: str, seed: int
) -> None:
    reader = FakeReader(seed=seed)
    extents = [PackedModel.open(pack).extent(1, expert) for expert in range(16)]
    with load_with(pack, make_reader=lambda n: reader, cache=0, verify="always") as model:
        session = model.session()
        session.feed(PROMPT)
        reader.faults = {extents[expert].offset: fault for expert in range(seed, 16, 2)}
        with pytest.raises(kind, match=message) as caught:
            session.feed(some_ids(30, seed=seed))
        assert f"{pack}/experts-0" in str(caught.value)
        assert "layer " in str(caught.value)
        with pytest.raises(UsageError, match="session: it ended with an error"):
            session.feed([1])
        reader.faults = {}
        goes_on(model, expected)


def test_a_flipped_bit_of_a_record_on_disk(pack: Path, expected: Transcript) -> None:
    extents = [PackedModel.open(pack).extent(1, expert) for expert in range(16)]
    for extent in extents:
        damage.flip_bit(extent.path, extent.offset + extent.nbytes // 2)
    with flashmoe.load(pack, cache=0) as model:
        session = model.session()
        with pytest.raises(ChecksumError, match=rf"{LAYER_1}: layer 1, expert \d+, offset"):
            session.feed(PROMPT)
        with pytest.raises(UsageError, match="Start a new one"):
            session.step(1)
        for extent in extents:
            damage.flip_bit(extent.path, extent.offset + extent.nbytes // 2)
        goes_on(model, expected)


def test_a_file_cut_short_under_the_open_model(pack: Path, expected: Transcript) -> None:
    path = pack / LAYER_1
    content = path.read_bytes()
    with flashmoe.load(pack, cache=0) as model:
        goes_on(model, expected)
        os.truncate(path, 4096)
        with pytest.raises(StorageError, match=f"{path}.*the file ends inside an expert"):
            model.logits(PROMPT)
        path.write_bytes(content)
        goes_on(model, expected)


def test_files_deleted_under_the_open_model_are_still_read(
    pack: Path, expected: Transcript
) -> None:
    with flashmoe.load(pack, cache=0) as model:
        (pack / LAYER_1).unlink()
        goes_on(model, expected)


def test_an_error_in_generate_reaches_the_caller(tmp_path: Path) -> None:
    reader = FakeReader()
    with load_with(
        flashmoe.demo.demo_model_path(), make_reader=lambda n: reader, cache=0, context_length=64
    ) as model:
        pieces = model.generate("Once upon", max_tokens=20)
        first = [next(pieces), next(pieces)]
        reader.faults = dict.fromkeys(range(0, 1 << 21, 4096), Fault.EIO)
        with pytest.raises(StorageError, match=r"experts-000\.safetensors"):
            list(pieces)
        assert list(pieces) == []
        reader.faults = {}
        again = list(model.generate("Once upon", max_tokens=20))
        assert again[:2] == first
