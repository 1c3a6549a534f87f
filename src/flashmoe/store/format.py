"""What a packed model consists of: dataclasses and layout arithmetic, no I/O; see docs/format.md.

The headers of its safetensors files follow from the manifest, byte for byte: a reader compares
them with the expected bytes instead of parsing them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashmoe.ops.base import Activation
from flashmoe.quant import ENCODED, Format

NAME = "flashmoe"
# What a pack is written as is the lowest version that can say what it holds: see Manifest.version.
VERSIONS = (1, 2, 3, 4, 5, 6)
MANIFEST = "flashmoe.json"
RESIDENT = "resident.safetensors"
EXPERTS_TENSOR = "experts"
BLOB_ALIGN = 64
PAGE = 4096
# gate and up alternate in blocks of as many rows as the kernels interleave.
INTERLEAVE = 8
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def align(n: int, multiple: int) -> int:
    """n rounded up."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class Matrix:
    """A resident matrix [rows, cols] in a weight format; the CRC covers its stored bytes."""

    format: Format
    rows: int
    cols: int
    crc32c: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the kernels read."""
        return self.format.nbytes(self.rows, self.cols)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file: nbytes and zero padding."""
        return align(self.nbytes, BLOB_ALIGN)


@dataclass(frozen=True)
class Vector:
    """A resident float32 tensor; the CRC covers its bytes."""

    shape: tuple[int, ...]
    crc32c: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in the file and in memory."""
        return 4 * math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Same as nbytes."""
        return self.nbytes


Tensor = Matrix | Vector


@dataclass(frozen=True)
class ExpertFormats:
    """The formats of a layer's experts: gate and up have one, down another or the same."""

    gate_up: Format
    down: Format


@dataclass(frozen=True)
class ExpertLayout:
    """A record: gate_up [2 I, H] at 0, down [H, I] at down_offset, zeros up to record_bytes.

    With bias, float32 [2 I] in the order of gate_up's rows and [H] follow at bias_offset.
    """

    num_experts: int
    hidden_size: int
    intermediate_size: int
    gate_up: Format
    down: Format
    activation: Activation = "swiglu"
    bias: bool = False

    @property
    def formats(self) -> ExpertFormats:
        """Of the three matrices."""
        return ExpertFormats(self.gate_up, self.down)

    def of(self, formats: ExpertFormats) -> ExpertLayout:
        """The same experts in other formats."""
        return dataclasses.replace(self, gate_up=formats.gate_up, down=formats.down)

    @property
    def gate_up_bytes(self) -> int:
        """Bytes of the gate_up blob."""
        return self.gate_up.nbytes(2 * self.intermediate_size, self.hidden_size)

    @property
    def down_bytes(self) -> int:
        """Bytes of the down blob."""
        return self.down.nbytes(self.hidden_size, self.intermediate_size)

    @property
    def down_offset(self) -> int:
        """Where the down blob starts in a record."""
        return align(self.gate_up_bytes, BLOB_ALIGN)

    @property
    def bias_offset(self) -> int:
        """Where the biases start in a record; 0: there are none."""
        return align(self.down_offset + self.down_bytes, BLOB_ALIGN) if self.bias else 0

    @property
    def bias_bytes(self) -> int:
        """Bytes of the biases."""
        return 4 * (2 * self.intermediate_size + self.hidden_size) if self.bias else 0

    @property
    def record_bytes(self) -> int:
        """Bytes from one record to the next, a multiple of PAGE."""
        end = self.bias_offset or self.down_offset + self.down_bytes
        return align(end + self.bias_bytes, PAGE)


@dataclass(frozen=True)
class ExpertLayer:
    """The experts file of one layer and the CRC of each of its records, padding included.

    shares: an earlier layer whose file, and so whose checksums, it uses; None: it has its own.
    formats: None: those of Manifest.experts.
    """

    layer: int
    crc32c: tuple[int, ...]
    shares: int | None = None
    formats: ExpertFormats | None = None

    @property
    def file(self) -> str:
        """The name of the file."""
        return experts_file(self.layer if self.shares is None else self.shares)


@dataclass(frozen=True)
class SmallFile:
    """A text file copied from the checkpoint."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """flashmoe.json. `tensors` is in file order, matrices before vectors.

    experts: the layout of the largest records; layers whose experts have other formats say so. A
    slot of experts.record_bytes holds an expert of any layer.
    """

    family: str
    source_name: str
    experts_format: Format
    dense_format: Format
    tensors: Mapping[str, Tensor]
    experts: ExpertLayout
    layers: tuple[ExpertLayer, ...]
    files: Mapping[str, SmallFile]
    calibration: str = ""

    @property
    def version(self) -> int:
        """The lowest that says it all: 6 for q4n and q5; 5 where layers differ; 4 for q2, q3 and
        calibrated experts; 3 for block formats; 2 for experts beyond a plain SwiGLU, and for mxfp4;
        else 1."""
        names = self._format_names()
        if names & {"q4n", "q5"}:
            return 6
        if self.mixed:
            return 5
        plain = self.experts.activation == "swiglu" and not self.experts.bias
        if self.calibration or names & {"q2", "q3"}:
            return 4
        if not names <= ENCODED.keys():
            return 3
        return 1 if plain and "mxfp4" not in names else 2

    def _format_names(self) -> set[str]:
        """Of all formats that the manifest names."""
        owned = [layer.formats for layer in self.layers if layer.formats]
        formats = [self.experts_format, self.dense_format, self.experts.gate_up, self.experts.down]
        formats += [one for formats_ in owned for one in (formats_.gate_up, formats_.down)]
        formats += [one.format for one in self.tensors.values() if isinstance(one, Matrix)]
        return {one.name for one in formats}

    @property
    def mixed(self) -> bool:
        """Whether the experts of some layers have other formats than those of others."""
        return any(layer.formats for layer in self.layers)

    @functools.cached_property
    def layouts(self) -> Mapping[int, ExpertLayout]:
        """By layer; equal ones are one object."""
        own = {layer.formats for layer in self.layers if layer.formats}
        made = {formats: self.experts.of(formats) for formats in own}
        return {
            layer.layer: made[layer.formats] if layer.formats else self.experts
            for layer in self.layers
        }

    @property
    def layer_bytes(self) -> int:
        """Bytes of one expert of each layer: per chosen expert, what a token reads."""
        return sum(layout.record_bytes for layout in self.layouts.values())

    def resident_header(self) -> bytes:
        """The head of resident.safetensors, up to its data."""
        return file_header([(n, *_stored_as(t)) for n, t in self.tensors.items()])

    def experts_header(self, layer: int) -> bytes:
        """The head of a layer's experts file, up to its data."""
        shape = (self.experts.num_experts, self.layouts[layer].record_bytes)
        return file_header([(EXPERTS_TENSOR, "U8", shape)])

    def tensor_offsets(self) -> dict[str, int]:
        """Where each resident tensor starts in the data of resident.safetensors."""
        offsets, position = {}, 0
        for name, tensor in self.tensors.items():
            offsets[name] = position
            position += tensor.stored_bytes
        return offsets

    @property
    def resident_bytes(self) -> int:
        """Size of the data of resident.safetensors."""
        return sum(tensor.stored_bytes for tensor in self.tensors.values())

    def data_files(self) -> dict[str, tuple[bytes, int]]:
        """Name -> (header, total size) of every safetensors file of the pack."""
        resident = self.resident_header()
        files = {RESIDENT: (resident, len(resident) + self.resident_bytes)}
        for layer in self.layers:
            header = self.experts_header(layer.layer)
            records = self.experts.num_experts * self.layouts[layer.layer].record_bytes
            files[layer.file] = header, len(header) + records
        return files


def experts_file(layer: int) -> str:
    """The name of the experts file of a layer."""
    return f"experts-{layer:03d}.safetensors"


def file_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The head of a safetensors file of (name, "U8" | "F32", shape), tensors back to back.

    Padded with spaces so that the data starts at a multiple of PAGE.
    """
    entries: dict[str, object] = {"__metadata__": {"format": NAME}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * (4 if dtype == "F32" else 1)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    length = align(8 + len(text), PAGE) - 8
    return struct.pack("<Q", length) + text.ljust(length)


def _stored_as(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    if isinstance(tensor, Vector):
        return "F32", tensor.shape
    return "U8", (tensor.stored_bytes,)


def stored_by(layer: ExpertLayer) -> int:
    """The layer whose items the records of a layer are."""
    return layer.layer if layer.shares is None else layer.shares


def expert_key(layer: int, expert: int) -> str:
    """The item key of an expert record."""
    return f"layers.{layer}.mlp.experts.{expert}"
