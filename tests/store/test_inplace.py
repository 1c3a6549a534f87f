"""A checkpoint that runs as it is gives the bits of its pack, and typed errors where it cannot."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe import _native
from flashmoe.errors import CheckpointError, NonFiniteError, StorageError
from flashmoe.models.registry import FAMILIES, IN_PLACE_FAMILIES
from flashmoe.store.inplace import InPlaceModel
from flashmoe.store.landed import land
from flashmoe.store.landing import Piece
from flashmoe.store.model import open_model
from flashmoe.store.packed import LoadedMatrix, PackedModel
from tests.store.support import read_record
from tests.support import mxfp4, oracle
from tests.support import quantised as made
from tests.support.gguf_files import write_gguf
from tests.support.gguf_recipes import write_mix
from tests.support.packs import Transcript, assert_same_bits, lively, load_with, transcript
from tests.support.tiny_checkpoints import CONFIGS, Layout, write_checkpoint

PROMPT, STEPS = list(range(5, 45)), 6
FAMILIES_AT_BF16 = {
    "each": ("qwen3_moe", Layout(shards=3)),
    "stacked": ("qwen3_5_moe", Layout(fused=True, shards=2, prefix="nested")),
    **{name: (name, Layout()) for name in CONFIGS if name != "qwen3_moe"},
}
# Of the formats in which a source is kept, one or more of each way in which it becomes a record.
QUANTISED = {
    "mlx4": made.mlx(4, 64, "BF16"),
    "mlx4-g32": made.mlx(4, 32, "BF16"),
    "mlx3": made.mlx(3, 64, "BF16"),
    "mlx8-f16": made.mlx(8, 32, "F16"),
    "mlx4-f32": made.mlx(4, 64, "F32"),
    "mlx-mxfp4": made.mlx_fp4("mxfp4"),
    "ct4": made.compressed(4, 32, sym=True, dtype="BF16"),
    "ct4-f16-channel": made.compressed(4, 0, sym=True, dtype="F16"),
    "ct8-channel": made.compressed(8, 0, sym=True, dtype="BF16"),
    "ct8-int8": made.compressed(8, 0, sym=False, dtype="BF16", packed=False),
    "ct8-int8-sym": made.compressed(8, 0, sym=True, dtype="F16", packed=False),
    "ct-nvfp4": made.two_level(divides=True),
    "modelopt-nvfp4": made.two_level(divides=False),
}
# Sizes as the K formats want them.
WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 2}
GGUF = {f"gguf-{kind}": kind for kind in ("Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4")}
# Families that only transformers can make.
ORACLES = sorted({*FAMILIES.values()} - {*CONFIGS})
MIXES = {f"gguf-mix-{name}": name for name in ("Q4_K_M", "UD")}
# As mlx-lm's mixed recipes: layers, matrices and groups differ.
MLX_MIX = made.mlx(
    4,
    64,
    "BF16",
    {
        "model.layers.0.mlp.switch_mlp.down_proj": (6, 64),
        "model.layers.1.mlp.switch_mlp.gate_proj": (8, 32),
        "model.layers.1.mlp.switch_mlp.up_proj": (8, 32),
        "model.layers.1.self_attn.v_proj": (4, 32),
        "model.layers.2.mlp.switch_mlp.down_proj": (4, 32),
        "lm_head": (6, 64),
    },
)
KINDS = [*FAMILIES_AT_BF16, "mxfp4", "mlx-mix", *QUANTISED, *GGUF, *MIXES]
oracles = [pytest.param(name, marks=pytest.mark.oracle) for name in ORACLES]


def make(root: Path, kind: str) -> tuple[Path, Path]:
    """A checkpoint and its exact pack."""
    source = write(root / kind, kind)
    if source.is_dir():
        (source / "tokenizer.json").unlink(missing_ok=True)  # these models are fed token ids
    pack = root / f"{kind}-pack"
    flashmoe.pack(source, pack, experts="same", dense="same")
    return source, pack


def write(path: Path, kind: str) -> Path:
    if kind == "mxfp4":
        return mxfp4.write_pair(path)[0]
    if kind == "mlx-mix":
        return made.write_pair(path, MLX_MIX, num_hidden_layers=3)[0]
    if kind in QUANTISED:
        return made.write_pair(path, QUANTISED[kind])[0]
    if kind in GGUF:
        path.mkdir()
        write_gguf(path / "m.gguf", "qwen3_moe", GGUF[kind], **WIDE)
        return path / "m.gguf"
    if kind in MIXES:
        path.mkdir()
        write_mix(path / "m.gguf", MIXES[kind])
        return path / "m.gguf"
    if kind in ORACLES:
        return oracle.save(oracle.tiny_model(oracle_type(kind)), path, fused=True)
    family, layout = FAMILIES_AT_BF16[kind]
    return write_checkpoint(path, family, layout, change=lively)


def oracle_type(family: str) -> str:
    """A type of a family that transformers makes."""
    return next(name for name in oracle.FAMILIES if FAMILIES.get(name) == family)


@pytest.fixture(scope="module", params=[*KINDS, *oracles])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make(tmp_path_factory.mktemp("inplace"), request.param)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return make(tmp_path, "each")[0]


def run(path: Path, **settings: Any) -> Transcript:
    with flashmoe.load(path, **settings) as model:
        return transcript(model, PROMPT, STEPS)


def from_file(piece: Piece) -> np.ndarray:
    with piece.path.open("rb") as file:
        file.seek(piece.offset)
        return np.frombuffer(file.read(piece.nbytes), np.uint8)


def test_records_and_resident_tensors_are_those_of_the_pack(pair: tuple[Path, Path]) -> None:
    model, pack = InPlaceModel.open(pair[0]), PackedModel.open(pair[1])
    for layer in pack.manifest.layers:
        for expert in range(pack.num_experts):
            got = land(model.extent(layer.layer, expert), from_file)
            assert (got == read_record(pack, layer.layer, expert)).all()
    got, expected = model.load_resident(), pack.load_resident()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        if isinstance(tensor, LoadedMatrix):
            assert (got[name].data == tensor.data).all(), name
        else:
            np.testing.assert_array_equal(got[name], tensor)


def test_rows_read_when_needed_are_those_in_memory(pair: tuple[Path, Path]) -> None:
    model, pack = InPlaceModel.open(pair[0]), PackedModel.open(pair[1])
    rows, numbers = model.rows("embed_tokens"), np.array([0, 3, 12])
    assert (rows.blocks(numbers) == pack.rows("embed_tokens").blocks(numbers)).all()
    assert rows.buffer_bytes == pack.rows("embed_tokens").buffer_bytes
    rows.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cache", [0, "auto", "all"])
def test_outputs_are_those_of_the_pack(
    pair: tuple[Path, Path], cache: int | str, threads: int
) -> None:
    expected = run(pair[1], cache="all", threads=1)
    assert_same_bits(run(pair[0], cache=cache, threads=threads, prefetch="on"), expected)


@pytest.mark.parametrize("readers", [1, 3, 8])
def test_readers_do_not_change_the_bits(pair: tuple[Path, Path], readers: int) -> None:
    assert_same_bits(run(pair[0], cache=0, readers=readers), run(pair[1], cache=0))


class Buffered(_native.Reader):
    """Reads through the page cache."""

    def open(self, path: str, direct: bool = False) -> int:
        return super().open(path, direct=False)


def test_buffered_reads_give_the_same_bits(pair: tuple[Path, Path]) -> None:
    with load_with(pair[0], make_reader=Buffered, cache=0) as model:
        assert_same_bits(transcript(model, PROMPT, STEPS), run(pair[1], cache=0))
        assert not model.stats.direct_io
        assert model.stats.landing_cpu_seconds > 0


def shard_of(model: InPlaceModel, layer: int, expert: int) -> tuple[Path, int]:
    origin = model.extent(layer, expert).origins[0]
    return origin.path, origin.offset


def touch(path: Path, offset: int) -> None:
    os.utime(path, ns=(1, 1))


def cut(path: Path, offset: int) -> None:
    os.truncate(path, offset + 10)


def overwrite(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"changed")
    os.utime(path, ns=(1, 1))  # a fast test may stay within a tick of the file system's clock


@pytest.mark.parametrize("damage", [touch, cut, overwrite])
def test_a_file_that_changes_while_the_model_runs(
    source: Path, damage: Callable[[Path, int], None]
) -> None:
    with flashmoe.load(source, cache=0) as model:
        transcript(model, PROMPT[:4], 1)
        damage(*shard_of(InPlaceModel.open(source), 1, 2))
        with pytest.raises(CheckpointError, match="safetensors: the file has changed"):
            transcript(model, PROMPT, STEPS)


def test_a_file_that_changes_before_the_weights_are_read(source: Path) -> None:
    model = InPlaceModel.open(source)
    touch(*shard_of(model, 0, 0))
    with pytest.raises(CheckpointError, match="has changed"):
        model.load_resident()


@pytest.mark.parametrize("cut_to", [0.2, 0.9])
def test_a_truncated_checkpoint_is_refused(source: Path, cut_to: float) -> None:
    path, _ = shard_of(InPlaceModel.open(source), 0, 0)
    os.truncate(path, int(path.stat().st_size * cut_to))
    with pytest.raises(CheckpointError, match="truncated"):
        flashmoe.load(source)


@pytest.mark.parametrize("seed", range(20))
def test_garbage_in_a_header_is_a_typed_error_or_harmless(source: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path, _ = shard_of(InPlaceModel.open(source), 0, 0)
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    data[int(rng.integers(0, 8 + length))] = int(rng.integers(0, 256))
    path.write_bytes(data)
    try:
        InPlaceModel.open(source)
    except CheckpointError as error:
        assert str(source) in str(error) or "json" in str(error)  # noqa: PT017


def test_a_weight_that_is_not_finite_names_its_tensor(source: Path) -> None:
    path, offset = shard_of(InPlaceModel.open(source), 0, 0)
    with path.open("r+b") as file:
        file.seek(offset + 64)
        file.write(struct.pack("<H", 0x7FC0))
    with (
        flashmoe.load(source, cache="all") as model,
        pytest.raises(NonFiniteError, match=r"layers\.0\.mlp\.experts\.0\.gate_proj.*not finite"),
    ):
        transcript(model, PROMPT, STEPS)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_weights_that_no_format_holds_are_refused_with_the_reason(
    tmp_path: Path, dtype: Any
) -> None:
    source = write_checkpoint(tmp_path / "source", "qwen3_moe", Layout(dtype=dtype))
    with pytest.raises(CheckpointError) as caught:
        flashmoe.load(source)
    text = str(caught.value)
    reason = f"no stored format holds {dtype} weights exactly"
    for part in ("experts.0.gate_proj", ".safetensors", reason, "flashmoe pack"):
        assert part in text


def test_a_layout_that_must_be_encoded_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "gpt_oss", Layout(fused=True))
    with pytest.raises(CheckpointError, match=r"gate_up_proj.*must be encoded.*flashmoe pack"):
        flashmoe.load(source)


def test_every_family_that_the_table_names_is_made() -> None:
    made_here = {family for family, _ in FAMILIES_AT_BF16.values()} | {*ORACLES}
    assert made_here == IN_PLACE_FAMILIES


REFUSED = {
    "gptq": (made.gptq(4, 64, sym=True), "transposed"),
    "awq": (made.awq(32), "transposed"),
    "desc_act": (made.gptq(4, 32, sym=True, desc_act=True), "must be encoded"),
    "ct4-asym": (made.compressed(4, 64, sym=False, dtype="BF16"), "packed down the columns"),
    "ct4-f32": (made.compressed(4, 32, sym=True, dtype="F32"), "F32 scales without zeros"),
    "mlx-nvfp4": (made.mlx_fp4("nvfp4"), "not stored"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_quantised_layouts_that_must_be_packed_say_why(tmp_path: Path, name: str) -> None:
    method, reason = REFUSED[name]
    source, _ = made.write_pair(tmp_path, method)
    with pytest.raises(CheckpointError, match=f"in place: .*{reason}.*flashmoe pack"):
        InPlaceModel.open(source)


@pytest.mark.parametrize(
    ("kind", "part", "bits"),
    [
        ("mlx4", "scales", b"\x80\x7f"),
        ("mlx8-f16", "biases", b"\x00\x7e"),
        ("mlx4-f32", "scales", b"\x00\x00\x80\xff"),
        ("ct8-channel", "weight_scale", b"\x7f\x7f"),  # -128 times that is no bf16
        ("ct-nvfp4", "weight_scale", b"\xff"),
        ("ct-nvfp4", "weight_global_scale", b"\0\0\0\0"),
    ],
)
def test_a_scale_that_is_no_scale_names_its_tensor(
    tmp_path: Path, kind: str, part: str, bits: bytes
) -> None:
    source, _ = make(tmp_path, kind)
    landing = InPlaceModel.open(source).extent(0, 0)
    origin = next(one for one in landing.origins if one.tensor.endswith(part))
    with origin.path.open("r+b") as file:
        file.seek(origin.offset)
        file.write(bits)
    with (
        flashmoe.load(source, cache="all") as model,
        pytest.raises(NonFiniteError, match=rf"{part}.*not finite"),
    ):
        transcript(model, PROMPT, STEPS)


@pytest.mark.parametrize(
    ("family", "kind", "sizes", "reason"),
    [
        ("gpt_oss", "Q8_0", {"intermediate_size": 64}, "computed from others"),
        ("qwen3_moe", "F32", {}, "no stored format holds F32"),
    ],
)
def test_gguf_that_must_be_packed_says_why(
    tmp_path: Path, family: str, kind: str, sizes: dict[str, int], reason: str
) -> None:
    write_gguf(tmp_path / "m.gguf", family, kind, **sizes)
    with pytest.raises(CheckpointError, match=f"in place: .*{reason}.*flashmoe pack"):
        InPlaceModel.open(tmp_path / "m.gguf")


def test_gate_and_up_of_different_formats_are_refused(tmp_path: Path) -> None:
    up = {r"blk\.1\.ffn_up_exps\.weight": "Q6_K"}
    write_gguf(tmp_path / "m.gguf", "qwen3_moe", "Q4_K", recipe=up, **WIDE)
    with pytest.raises(CheckpointError, match="in place: the experts differ in format"):
        InPlaceModel.open(tmp_path)


def test_text_of_a_gguf_file_comes_from_its_metadata(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen3_moe", "Q8_0")
    model = InPlaceModel.open(tmp_path / "m.gguf")
    texts = model.text_path
    assert json.loads((texts / "config.json").read_text())["model_type"] == "qwen3_moe"
    del model
    assert not texts.exists()


def test_a_missing_shard_at_a_read_is_found(source: Path) -> None:
    model = InPlaceModel.open(source)
    shard_of(model, 0, 0)[0].unlink()
    with pytest.raises((CheckpointError, StorageError)):
        model.load_resident()


def test_what_is_opened(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert isinstance(open_model(pair[0]), InPlaceModel)
    assert isinstance(open_model(pair[1]), PackedModel)
    with pytest.raises(flashmoe.errors.PackError, match="not a packed model"):
        open_model(tmp_path)


def test_the_identity_tells_files_apart(source: Path) -> None:
    before = InPlaceModel.open(source).identity
    assert InPlaceModel.open(source).identity == before
    touch(*shard_of(InPlaceModel.open(source), 0, 0))
    assert InPlaceModel.open(source).identity != before


def test_verify_and_info(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from flashmoe.cli.info import info
    from flashmoe.cli.verify import verify

    verify(pair[0], json=False, quiet=False)
    assert "no checksums" in capsys.readouterr().out
    info(pair[0], json=True)
    here = json.loads(capsys.readouterr().out)
    info(pair[1], json=True)
    packed = json.loads(capsys.readouterr().out)
    assert here["in_place"]
    assert not packed["in_place"]
    differ = {"source", "total_bytes", "expert_files", "in_place"}
    assert {k: v for k, v in here.items() if k not in differ} == {
        k: v for k, v in packed.items() if k not in differ
    }
