"""flashmoe.json <-> Manifest, strictly: every field typed, bounded and consistent. No I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

from flashmoe.checkpoint.config import MAX_EXPERTS, MAX_LAYERS
from flashmoe.checkpoint.directory import MAX_SMALL_FILE
from flashmoe.errors import PackError
from flashmoe.ops.base import Activation
from flashmoe.quant import FORMATS, Format, groups
from flashmoe.store.format import (
    INTERLEAVE,
    MANIFEST,
    NAME,
    SMALL_FILES,
    VERSIONS,
    ExpertFormats,
    ExpertLayer,
    ExpertLayout,
    Manifest,
    Matrix,
    SmallFile,
    Tensor,
    Vector,
)
from flashmoe.strict_json import Fields, parse

MAX_BYTES = 64 << 20
MAX_DIM = 2**31 - 1
MAX_TENSOR_BYTES = 2**44
MAX_CRC = 2**32 - 1
UNCALIBRATED = "none"


def to_json(manifest: Manifest) -> str:
    """The text of flashmoe.json: ASCII, one line, no time or path in it."""
    return json.dumps(_to_raw(manifest), separators=(",", ":")) + "\n"


def from_json(data: bytes) -> Manifest:
    """The bytes of flashmoe.json -> Manifest.

    Raises:
        PackError: not JSON, another version, or a field that is missing, unknown, out of bounds
            or contradicts the others.
    """
    fields = Fields(parse(data, MANIFEST, PackError), MANIFEST, PackError)
    version = _version(fields)
    quantization = fields.fields("quantization")
    experts = fields.fields("experts")
    layout = _layout(experts, version)
    manifest = Manifest(
        family=fields.text("family"),
        source_name=_source_name(fields.fields("source")),
        experts_format=_format(quantization.fields("experts"), done=True),
        dense_format=_format(quantization.fields("dense"), done=True),
        tensors=_tensors(fields.fields("tensors")),
        experts=layout,
        layers=_layers(experts, layout, version),
        files=_files(fields.fields("files")),
        calibration=_calibration(quantization) if version > 3 else "",
    )
    for part in (fields, quantization, experts):
        part.end()
    if manifest.version != version:
        fields.fail("version", manifest.version, version)
    return manifest


def _calibration(quantization: Fields) -> str:
    record = quantization.text("calibration")
    return "" if record == UNCALIBRATED else record


def _version(fields: Fields) -> int:
    fields.choice("format", NAME)
    version = fields.integer("version")
    if version not in VERSIONS:
        hint = "Pack the model again with this version of flashmoe"
        expected = " | ".join(map(str, VERSIONS))
        raise PackError(
            "unknown format version", where=MANIFEST, expected=expected, got=version, hint=hint
        )
    return version


def _source_name(fields: Fields) -> str:
    name = fields.text("name")
    fields.end()
    return name


def _format(fields: Fields, done: bool = False) -> Format:
    name = fields.choice("format", *FORMATS)
    group = fields.integer("group")
    if group not in groups(name):
        fields.fail("group", " | ".join(map(str, groups(name))), group)
    if done:
        fields.end()
    return Format(name, group)


def _tensors(fields: Fields) -> dict[str, Tensor]:
    tensors = {name: _tensor(member) for name, member in fields.members().items()}
    kinds = [isinstance(tensor, Vector) for tensor in tensors.values()]
    if kinds != sorted(kinds):
        raise PackError("a matrix follows a vector", where=fields.where)
    if not tensors:
        raise PackError("no tensors", where=fields.where)
    return tensors


def _tensor(fields: Fields) -> Tensor:
    shape = fields.integers("shape", low=1, high=MAX_DIM)
    crc = fields.integer("crc32c", high=MAX_CRC)
    if fields.choice("format", "f32", *FORMATS) == "f32":
        tensor: Tensor = Vector(shape, crc)
    else:
        tensor = _matrix(fields, shape, crc)
    if not 1 <= len(shape) <= 4 or tensor.nbytes > MAX_TENSOR_BYTES:
        fields.fail("shape", "1 to 4 dimensions of a reasonable size", shape)
    fields.end()
    return tensor


def _matrix(fields: Fields, shape: tuple[int, ...], crc: int) -> Matrix:
    format_ = _format(fields)
    if len(shape) != 2 or not format_.fits(shape[1]):
        fields.fail("shape", f"[rows, cols] that {format_.name} can store", shape)
    matrix = Matrix(format_, shape[0], shape[1], crc)
    nbytes = fields.integer("nbytes")
    if nbytes != matrix.nbytes:
        fields.fail("nbytes", matrix.nbytes, nbytes)
    return matrix


def _layout(fields: Fields, version: int) -> ExpertLayout:
    layout = ExpertLayout(
        num_experts=fields.integer("num_experts", low=1, high=MAX_EXPERTS),
        hidden_size=fields.integer("hidden_size", low=1, high=MAX_DIM),
        intermediate_size=fields.integer("intermediate_size", low=1, high=MAX_DIM),
        gate_up=_format(fields.fields("gate_up"), done=True),
        down=_format(fields.fields("down"), done=True),
        **(_extensions(fields) if version > 1 else {}),
    )
    _check_layout(fields, layout, version)
    return layout


def _check_layout(fields: Fields, layout: ExpertLayout, version: int) -> None:
    """Formats fit, and sizes are those that follow."""
    if layout.intermediate_size % INTERLEAVE:
        expected = f"a multiple of {INTERLEAVE}"
        fields.fail("intermediate_size", expected, layout.intermediate_size)
    if not layout.gate_up.fits(layout.hidden_size) or not layout.down.fits(
        layout.intermediate_size
    ):
        fields.fail("hidden_size", "sizes that the formats can store", layout)
    offsets = ("down_offset", "bias_offset") if version > 1 else ("down_offset",)
    for key in (*offsets, "record_bytes"):
        if fields.integer(key, high=MAX_TENSOR_BYTES) != getattr(layout, key):
            fields.fail(key, getattr(layout, key), "another value")


def _extensions(fields: Fields) -> dict[str, Any]:
    """What version 2 says of experts beyond version 1."""
    activation = fields.choice("activation", *get_args(Activation))
    return {"activation": activation, "bias": fields.integer("bias_offset") > 0}


def _layers(fields: Fields, layout: ExpertLayout, version: int) -> tuple[ExpertLayer, ...]:
    items = [Fields(raw, f"{fields.where}: layers", PackError) for raw in fields.items("layers")]
    layers: list[ExpertLayer] = []
    for item in items:
        layers.append(_layer(item, layout, version, layers))
    numbers = [layer.layer for layer in layers]
    if not numbers or any(a >= b for a, b in pairwise(numbers)):
        fields.fail("layers", "ascending layer numbers", numbers)
    return tuple(layers)


def _layer(
    fields: Fields, layout: ExpertLayout, version: int, before: Sequence[ExpertLayer]
) -> ExpertLayer:
    """before: the layers listed earlier, one of whose files it may share."""
    layer = ExpertLayer(
        fields.integer("layer", high=MAX_LAYERS),
        fields.integers("crc32c", high=MAX_CRC),
        formats=_own_formats(fields, layout, version),
    )
    owners = {one.file: one for one in before if one.shares is None}
    owner = owners.get(fields.choice("file", layer.file, *owners))
    if owner is not None:
        layer = replace(layer, shares=owner.layer)
    if len(layer.crc32c) != layout.num_experts:
        fields.fail("crc32c", f"{layout.num_experts} checksums", len(layer.crc32c))
    if owner is not None and owner.crc32c != layer.crc32c:
        fields.fail("crc32c", f"the checksums of layer {owner.layer}", "others for the same file")
    if owner is not None and owner.formats != layer.formats:
        fields.fail("file", f"the formats of layer {owner.layer}", "others for the same file")
    fields.end()
    return layer


def _own_formats(fields: Fields, largest: ExpertLayout, version: int) -> ExpertFormats | None:
    """The formats of a layer that differ from those of the largest records."""
    if version < 5 or not fields.has("gate_up"):
        return None
    formats = ExpertFormats(
        _format(fields.fields("gate_up"), done=True), _format(fields.fields("down"), done=True)
    )
    layout = largest.of(formats)
    _check_layout(fields, layout, version)
    if formats == largest.formats or layout.record_bytes > largest.record_bytes:
        fields.fail("gate_up", "other formats, whose records are not larger", formats)
    return formats


def _files(fields: Fields) -> dict[str, SmallFile]:
    files = {}
    for name, member in fields.members().items():
        if name not in SMALL_FILES:
            raise PackError("unknown file", where=fields.where, got=repr(name))
        nbytes = member.integer("bytes", high=MAX_SMALL_FILE)
        files[name] = SmallFile(nbytes, member.text("sha256"))
        member.end()
    if "config.json" not in files:
        raise PackError("config.json is not listed", where=fields.where)
    return files


def _to_raw(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": NAME,
        "version": manifest.version,
        "family": manifest.family,
        "source": {"name": manifest.source_name},
        "quantization": {
            "experts": _raw_format(manifest.experts_format),
            "dense": _raw_format(manifest.dense_format),
            **(
                {"calibration": manifest.calibration or UNCALIBRATED}
                if manifest.version > 3
                else {}
            ),
        },
        "tensors": {name: _raw_tensor(tensor) for name, tensor in manifest.tensors.items()},
        "experts": _raw_experts(manifest),
        "files": {
            name: {"bytes": file.nbytes, "sha256": file.sha256}
            for name, file in manifest.files.items()
        },
    }


def _raw_format(format_: Format) -> dict[str, Any]:
    return {"format": format_.name, "group": format_.group}


def _raw_tensor(tensor: Tensor) -> dict[str, Any]:
    if isinstance(tensor, Vector):
        return {"format": "f32", "shape": list(tensor.shape), "crc32c": tensor.crc32c}
    return {
        **_raw_format(tensor.format),
        "shape": [tensor.rows, tensor.cols],
        "nbytes": tensor.nbytes,
        "crc32c": tensor.crc32c,
    }


def _raw_experts(manifest: Manifest) -> dict[str, Any]:
    layout = manifest.experts
    return {
        "num_experts": layout.num_experts,
        "hidden_size": layout.hidden_size,
        "intermediate_size": layout.intermediate_size,
        **_raw_formats(layout),
        **(_raw_extensions(layout) if manifest.version > 1 else {}),
        "down_offset": layout.down_offset,
        "record_bytes": layout.record_bytes,
        "layers": [_raw_layer(layer, manifest.layouts[layer.layer]) for layer in manifest.layers],
    }


def _raw_formats(layout: ExpertLayout) -> dict[str, Any]:
    return {"gate_up": _raw_format(layout.gate_up), "down": _raw_format(layout.down)}


def _raw_layer(layer: ExpertLayer, layout: ExpertLayout) -> dict[str, Any]:
    raw = {"layer": layer.layer, "file": layer.file, "crc32c": list(layer.crc32c)}
    if layer.formats is None:
        return raw
    keys = ("bias_offset", "down_offset", "record_bytes")
    return raw | _raw_formats(layout) | {key: getattr(layout, key) for key in keys}


def _raw_extensions(layout: ExpertLayout) -> dict[str, Any]:
    return {"activation": layout.activation, "bias_offset": layout.bias_offset}
