from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flashmoe._native import Reader
from flashmoe.errors import ChecksumError, FlashMoeError, PackError, StorageError, UsageError
from flashmoe.store import resident
from flashmoe.store.info import pack_info
from flashmoe.store.packed import LoadedMatrix, PackedModel
from flashmoe.store.resident import page_aligned
from flashmoe.store.verify import verify
from tests.store.support import make_pack


@pytest.fixture
def model(tmp_path: Path) -> PackedModel:
    return make_pack(tmp_path)


def flip(path: Path, at: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_resident_tensors_are_views_of_the_given_buffer(model: PackedModel) -> None:
    buffer = page_aligned(model.resident_room())
    for tensor in model.load_resident(buffer).values():
        data = tensor.data if isinstance(tensor, LoadedMatrix) else tensor
        assert np.shares_memory(data, buffer)


def stored(model: PackedModel, name: str) -> bytes:
    """The bytes of a resident tensor, as they are in the file."""
    begin = len(model.manifest.resident_header()) + model.manifest.tensor_offsets()[name]
    content = (model.path / "resident.safetensors").read_bytes()
    return content[begin : begin + model.manifest.tensors[name].nbytes]


@pytest.mark.parametrize("block_bytes", [4096, 8192, 4 << 20])
def test_whatever_the_blocks_and_what_is_skipped(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Of two tensors that share a page one may be skipped, first or last or in between."""
    monkeypatch.setattr(resident, "BLOCK_BYTES", block_bytes)
    names = list(model.manifest.tensors)
    for skip in [(), names[:1], names[-1:], names[1:5:2], names]:
        loaded = model.load_resident(skip=skip)
        assert loaded.keys() == set(names) - set(skip)
        for name, tensor in loaded.items():
            data = tensor.data if isinstance(tensor, LoadedMatrix) else tensor
            assert data.tobytes() == stored(model, name), name


def test_damage_of_what_is_skipped_is_seen(model: PackedModel) -> None:
    flip(model.path / "resident.safetensors", len(model.manifest.resident_header()) + 5)
    first = next(iter(model.manifest.tensors))
    with pytest.raises(ChecksumError, match=first):
        model.load_resident(skip=[first])


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_an_interrupt_leaves_no_reads_behind(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    ended: list[bool] = []

    class Interrupted(Reader):
        waits = 0

        def wait(self, timeout_s: float) -> list[tuple[int, int, int]]:
            Interrupted.waits += 1
            if Interrupted.waits == calls:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

        def cancel(self) -> None:
            super().cancel()
            ended.append(True)

    monkeypatch.setattr(resident, "BLOCK_BYTES", 4096)
    monkeypatch.setattr("flashmoe._native.Reader", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.load_resident()
    assert ended


def test_files_and_extents(model: PackedModel) -> None:
    assert [file.name for file in model.files] == [f"experts-00{i}.safetensors" for i in range(4)]
    extent = model.extent(2, 5)
    assert extent.path == model.files[2]
    assert extent.offset + extent.nbytes == extent.path.stat().st_size


def test_not_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent: is not a directory"):
        PackedModel.open(tmp_path / "absent")


def test_a_checkpoint_is_not_a_pack(model: PackedModel, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"source: not a packed model.*flashmoe pack"):
        PackedModel.open(tmp_path / "source")


@pytest.mark.parametrize(
    "name", ["resident.safetensors", "experts-002.safetensors", "tokenizer.json", "config.json"]
)
def test_missing_truncated_and_longer_files(model: PackedModel, name: str) -> None:
    path = model.path / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(PackError, match=f"{name}: file is truncated; expected {len(content)}"):
        PackedModel.open(model.path)
    path.write_bytes(content + b"\0")
    with pytest.raises(PackError, match=f"{name}: file is too long"):
        PackedModel.open(model.path)
    path.unlink()
    with pytest.raises(PackError, match=f"{name}: file is missing"):
        PackedModel.open(model.path)


def test_any_changed_header_byte_is_seen(model: PackedModel) -> None:
    path = model.path / "experts-001.safetensors"
    for at in (0, 7, 8, 30, 4095):
        flip(path, at)
        with pytest.raises(PackError, match=r"experts-001\.safetensors: header is not the one"):
            PackedModel.open(model.path)
        flip(path, at)
    PackedModel.open(model.path)


def test_a_changed_text_file_is_seen(model: PackedModel) -> None:
    flip(model.path / "config.json", 40)
    with pytest.raises(ChecksumError, match=r"config\.json: checksum does not match"):
        PackedModel.open(model.path)


def test_any_changed_resident_byte_is_seen(model: PackedModel) -> None:
    path, start = model.path / "resident.safetensors", len(model.manifest.resident_header())
    for name, offset in model.manifest.tensor_offsets().items():
        last = offset + model.manifest.tensors[name].stored_bytes - 1
        flip(path, start + last)
        with pytest.raises(ChecksumError, match=f"resident.safetensors: {name}: checksum"):
            model.load_resident()
        flip(path, start + last)
    model.load_resident()


def test_file_that_shrinks_while_loading(model: PackedModel) -> None:
    path = model.path / "resident.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StorageError, match=r"resident\.safetensors: file ends too early"):
        model.load_resident()


# verify


def test_a_sound_pack(model: PackedModel) -> None:
    calls: list[tuple[int, int]] = []
    assert verify(model.path, lambda *call: calls.append(call)) == []
    assert calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)


def test_all_damages_are_reported(model: PackedModel) -> None:
    record = model.extent(0, 0)
    flip(model.path / "config.json", 3)
    flip(model.path / "resident.safetensors", len(model.manifest.resident_header()))
    flip(model.files[0], record.offset)
    flip(model.files[0], record.offset + 3 * record.nbytes - 1)
    flip(model.files[1], 100)
    model.files[2].write_bytes(b"")
    model.files[3].unlink()
    found = [
        str(damage).split("; ")[0].removeprefix(f"{model.path}/") for damage in verify(model.path)
    ]
    assert found == [
        "config.json: checksum does not match",
        "resident.safetensors: embed_tokens: checksum does not match",
        "experts-000.safetensors: expert 0: checksum does not match",
        "experts-000.safetensors: expert 2: checksum does not match",
        "experts-001.safetensors: header is not the one that flashmoe.json describes",
        "experts-002.safetensors: file is truncated",
        "experts-003.safetensors: file is missing",
    ]


def test_every_byte_of_a_pack_is_covered(model: PackedModel) -> None:
    rng = np.random.default_rng(1)
    for path in sorted(model.path.iterdir()):
        if path.name == "flashmoe.json":
            continue
        for at in rng.integers(0, path.stat().st_size, 5):
            flip(path, int(at))
            assert len(verify(model.path)) == 1, f"{path.name} at {at}"
            flip(path, int(at))


def test_manifest_flips_never_go_unnoticed_or_crash(model: PackedModel) -> None:
    path = model.path / "flashmoe.json"
    harmless = path.read_bytes().index(b'"name":"source"') + 8
    for at in range(0, path.stat().st_size, 97):
        if harmless <= at < harmless + 6:
            continue
        flip(path, at)
        try:
            damages = verify(model.path)
        except FlashMoeError as error:
            damages = [error]
        assert damages, at
        flip(path, at)


# info


def test_info(model: PackedModel) -> None:
    info = pack_info(model, num_experts_per_tok=2)
    layout = model.manifest.experts
    assert info.expert_bytes == 4 * 6 * layout.record_bytes
    assert info.bytes_per_token == 4 * 2 * layout.record_bytes
    assert info.total_bytes == sum(file.stat().st_size for file in model.path.iterdir())
    assert info.parameters - info.active_parameters == 4 * (6 - 2) * 3 * 64 * 64
    assert (info.experts_format, info.dense_format) == ("q4 g32", "q8 g32")
    assert 4 < info.expert_bits_per_weight < 6


def test_info_of_an_untied_model(tmp_path: Path) -> None:
    info = pack_info(make_pack(tmp_path, "qwen3_moe"), num_experts_per_tok=2)
    experts, embedding = 2 * (6 - 2) * 3 * 64 * 64, 99 * 64
    assert info.parameters - info.active_parameters == experts + embedding
