from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from flashmoe.errors import (
    CheckpointError,
    ConfigError,
    FlashMoeError,
    NonFiniteError,
    StorageError,
    UsageError,
)
from flashmoe.models.registry import load_family
from flashmoe.models.specs import MatrixSpec, Source
from flashmoe.quant import Format
from flashmoe.store import stream
from flashmoe.store.pack import pack_checkpoint
from flashmoe.store.packed import LoadedMatrix, PackedModel
from flashmoe.store.plan import PackOptions
from flashmoe.store.verify import verify
from tests.store.support import OPTIONS, contents, decode_record, make_pack, read_record
from tests.support.demo import demo_checkpoint
from tests.support.tiny_checkpoints import (
    CONFIGS,
    Layout,
    Tensors,
    make_tensors,
    write_checkpoint,
    write_safetensors,
)

FORMATS = [("q4", "q8", 32), ("q8", "q4", 64), ("bf16", "bf16", 64)]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("formats", FORMATS)
def test_pack_holds_the_encoded_weights(
    tmp_path: Path, family: str, formats: tuple[str, str, int]
) -> None:
    model = make_pack(tmp_path, family, PackOptions.parse(*formats))
    tensors = make_tensors(CONFIGS[family])
    module = load_family(family)
    specs = module.weights(module.read_config(model.config))
    loaded = model.load_resident()
    assert loaded.keys() == {spec.name for spec in specs.matrices + specs.vectors}
    for spec in specs.matrices:
        _check_matrix(loaded[spec.name], spec, tensors, model)
    for vector in specs.vectors:
        expected = tensors[vector.source].reshape(vector.shape) + np.float32(vector.offset)
        np.testing.assert_array_equal(loaded[vector.name], expected)


def _check_matrix(found: Any, spec: MatrixSpec, tensors: Tensors, model: PackedModel) -> None:
    assert isinstance(found, LoadedMatrix)
    dense = model.manifest.dense_format
    assert found.format == (Format("bf16") if spec.role == "exact" else dense)
    expected = np.concatenate([_rows(tensors[s.name], s, spec.cols) for s in spec.sources])
    if spec.interleave:
        half = spec.rows // 2
        order = [p * half + i for b in range(0, half, 8) for p in (0, 1) for i in range(b, b + 8)]
        expected = expected[order]
    np.testing.assert_array_equal(found.data, found.format.encode(expected))


def _rows(w: NDArray[np.float32], source: Source, cols: int) -> NDArray[np.float32]:
    if source.transposed:
        return w[source.first : source.first + cols].T
    return w[source.first :: source.step][: source.rows]


@pytest.mark.parametrize("formats", FORMATS)
def test_records_hold_the_encoded_experts(tmp_path: Path, formats: tuple[str, str, int]) -> None:
    model = make_pack(tmp_path, "qwen3_moe", PackOptions.parse(*formats))
    layout, tensors = model.manifest.experts, make_tensors(CONFIGS["qwen3_moe"])
    for layer, expert in itertools.product(range(2), range(6)):
        found = decode_record(layout, read_record(model, layer, expert))
        for part, w in zip(("gate", "up", "down"), found, strict=True):
            source = tensors[f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"]
            np.testing.assert_array_equal(w, _through(layout.down, source))


def _through(format_: Format, w: NDArray[np.float32]) -> NDArray[np.float32]:
    return format_.decode(format_.encode(w), *w.shape)


@pytest.mark.parametrize("family", CONFIGS)
def test_result_does_not_depend_on_the_checkpoint_layout(tmp_path: Path, family: str) -> None:
    prefixes = ("text", "nested", "outer") if family == "qwen3_5_moe" else ("text",)
    layouts = itertools.product((False, True), (1, 3), prefixes, ("BF16", "F16", "F32"))
    digests = set()
    for number, layout in enumerate(layouts):
        source = write_checkpoint(tmp_path / str(number), family, Layout(*layout))
        pack_checkpoint(source, tmp_path / f"{number}.pack", OPTIONS)
        files = contents(tmp_path / f"{number}.pack")
        data = b"".join(files[name] for name in sorted(files) if name.endswith(".safetensors"))
        digests.add(hashlib.sha256(data).hexdigest())
    assert len(digests) == 1


def test_pieces_of_any_size_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_pack(tmp_path / "whole")
    monkeypatch.setattr(stream, "PIECE_BYTES", 1)
    pieces = make_pack(tmp_path / "pieces")
    assert contents(whole.path) == contents(pieces.path)


def test_stock_library_reads_every_file(tmp_path: Path) -> None:
    model = make_pack(tmp_path)
    layout = model.manifest.experts
    for layer in model.manifest.layers:
        with safe_open(model.path / layer.file, "np") as file:
            experts = file.get_tensor("experts")
        assert experts.shape == (layout.num_experts, layout.record_bytes)
        for expert in range(layout.num_experts):
            np.testing.assert_array_equal(experts[expert], read_record(model, layer.layer, expert))
    loaded = model.load_resident()
    with safe_open(model.path / "resident.safetensors", "np") as file:
        assert set(file.keys()) == loaded.keys()
        for name, tensor in loaded.items():
            stored = file.get_tensor(name)
            expected = tensor.data if isinstance(tensor, LoadedMatrix) else tensor
            np.testing.assert_array_equal(stored[: len(expected)], expected)


def test_data_is_aligned(tmp_path: Path) -> None:
    model = make_pack(tmp_path)
    for layer, expert in itertools.product(range(4), range(6)):
        extent = model.extent(layer, expert)
        assert extent.offset % 4096 == extent.nbytes % 4096 == 0
    assert len(model.manifest.resident_header()) % 4096 == 0
    for name, tensor in model.load_resident().items():
        if isinstance(tensor, LoadedMatrix):
            assert tensor.data.ctypes.data % 64 == 0, name


def test_small_files_are_copied_verbatim(tmp_path: Path) -> None:
    model = make_pack(tmp_path)
    assert set(model.manifest.files) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in model.manifest.files:
        assert (model.path / name).read_bytes() == (tmp_path / "source" / name).read_bytes()


def test_progress_counts_up_to_all_data(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", "qwen3_moe")
    calls: list[tuple[int, int]] = []
    pack_checkpoint(source, tmp_path / "pack", OPTIONS, lambda *call: calls.append(call))
    model = PackedModel.open(tmp_path / "pack")
    total = model.resident_bytes + model.expert_bytes
    assert calls == sorted(calls)
    assert {call[1] for call in calls} == {total}
    assert calls[-1][0] == total


def test_nothing_is_left_beside_the_pack(tmp_path: Path) -> None:
    make_pack(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["pack", "source"]


# Bad input


def refused(
    tmp_path: Path,
    error: type[FlashMoeError],
    message: str,
    *,
    change: Any = None,
    layout: Layout | None = None,
    options: PackOptions = OPTIONS,
    **overrides: Any,
) -> None:
    source = write_checkpoint(tmp_path / "s", "qwen3_5_moe", layout, change=change, **overrides)
    with pytest.raises(error, match=message):
        pack_checkpoint(source, tmp_path / "p", options)
    assert not (tmp_path / "p").exists()


def test_existing_destination(tmp_path: Path) -> None:
    make_pack(tmp_path)
    with pytest.raises(UsageError, match="pack: destination already exists"):
        pack_checkpoint(tmp_path / "source", tmp_path / "pack", OPTIONS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("fused", [False, True])
def test_bad_expert_weight_is_located(tmp_path: Path, value: float, fused: bool) -> None:
    def damage(tensors: Tensors) -> None:
        tensors["model.layers.2.mlp.experts.3.up_proj.weight"][21, 5] = value

    name, row = (
        (r"mlp\.experts\.gate_up_proj", 3 * 128 + 64 + 21)
        if fused
        else (r"mlp\.experts\.3\.up_proj\.weight", 21)
    )
    message = rf"model\.layers\.2\.{name}: weight is not finite.* row {row}, column 5"
    refused(
        tmp_path, NonFiniteError, message, change=damage, layout=Layout(fused=fused, dtype="F32")
    )


@pytest.mark.parametrize(
    ("name", "at", "where"),
    [
        ("model.embed_tokens.weight", (99, 63), "row 99, column 63"),
        ("model.layers.1.mlp.shared_expert.up_proj.weight", (9, 0), "row 9, column 0"),
        ("model.norm.weight", (7,), "row 0, column 7"),
        ("model.layers.0.linear_attn.conv1d.weight", (1, 0, 2), "row 0, column 6"),
    ],
)
def test_nan_in_a_resident_tensor_is_located(
    tmp_path: Path, name: str, at: tuple[int, ...], where: str
) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[name][at] = np.nan

    refused(tmp_path, NonFiniteError, f"{name}: .*nan at {where}", change=damage)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vocab_size": 101}, r"embed_tokens.weight: .*expected \[101, 64\], got \[100, 64\]"),
        ({"num_attention_heads": 6}, r"layers\.3\.self_attn\.q_proj"),
        ({"linear_conv_kernel_dim": 3}, r"conv1d\.weight: .*got \[128, 1, 4\]"),
        ({"num_experts": 5}, r"mlp\.gate\.weight"),
        ({"moe_intermediate_size": 32}, r"experts\.0\.gate_proj"),
    ],
)
def test_config_that_contradicts_a_shape(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    source = write_checkpoint(tmp_path / "s", "qwen3_5_moe")
    config = (source / "config.json").read_text()
    for key, value in overrides.items():
        config = config.replace(f'"{key}": {CONFIGS["qwen3_5_moe"][key]}', f'"{key}": {value}')
    (source / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=message):
        pack_checkpoint(source, tmp_path / "p", OPTIONS)


def test_missing_tensor(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.4.down_proj.weight"
    message = rf"tensor is missing; expected {name}"
    refused(tmp_path, CheckpointError, message, change=lambda tensors: tensors.pop(name))


def test_unknown_tensor(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(4, np.float32)

    refused(tmp_path, CheckpointError, r"does not have; got .*q_proj\.bias", change=add)


def test_unsupported_weight_type(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", "qwen3_5_moe")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"I16" ', 1))
    with pytest.raises(CheckpointError, match=r"embed_tokens.*BF16 \| F16 \| F32, got I16"):
        pack_checkpoint(source, tmp_path / "p", OPTIONS)


def test_mixed_types_in_one_matrix(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", "qwen3_5_moe", Layout(shards=2))
    tensors = make_tensors(CONFIGS["qwen3_5_moe"])
    second = {name: tensors[name] for name in list(tensors)[1::2]}
    write_safetensors(source / "model-00002-of-00002.safetensors", second, "F32")
    with pytest.raises(CheckpointError, match="tensors of one matrix differ in type"):
        pack_checkpoint(source, tmp_path / "p", OPTIONS)


def test_group_that_does_not_fit(tmp_path: Path) -> None:
    options = PackOptions.parse("q4", "q8", 128)
    refused(tmp_path, UsageError, "does not fit 64 columns.*--group", options=options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("q7", "q8", 64), "--experts"), (("q4", "x", 64), "--dense"), (("q4", "q8", 48), "group")],
)
def test_bad_options(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PackOptions.parse(*arguments)


@pytest.mark.parametrize("name", ["a\nb\x1b[2J", os.fsdecode(b"a\xff")])
def test_a_directory_whose_name_cannot_be_printed(name: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / name, "qwen3_moe")
    pack_checkpoint(source, tmp_path / "packed", OPTIONS)
    found = PackedModel.open(tmp_path / "packed").manifest.source_name
    assert found.startswith("a")
    assert found.isprintable()


def test_unwritable_destination(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", "qwen3_moe")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create"):
        pack_checkpoint(source, tmp_path / "file" / "p", OPTIONS)


@pytest.mark.checkpoint
@pytest.mark.parametrize("formats", [("q4", "q8", 64), ("bf16", "bf16", 64)])
def test_demo_checkpoint(tmp_path: Path, formats: tuple[str, str, int]) -> None:
    pack_checkpoint(demo_checkpoint(), tmp_path / "p", PackOptions.parse(*formats))
    assert verify(tmp_path / "p") == []
