"""Decides what a pack will hold and where every byte comes from. Pure: nothing is read or written.

All that can be wrong with names, shapes, types and options is found here, before any work.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flashmoe.checkpoint.names import Names
from flashmoe.checkpoint.quantization import Quantization
from flashmoe.checkpoint.safetensors import INTEGER_TYPES, WEIGHT_TYPES
from flashmoe.checkpoint.safetensors import Tensor as SourceTensor
from flashmoe.errors import CheckpointError, ConfigError, UsageError
from flashmoe.models.specs import ExpertsSpec, MatrixSpec, Source, VectorSpec, WeightSpecs
from flashmoe.quant import ENCODED, Format, groups
from flashmoe.store import format as fmt
from flashmoe.store.expert_sources import Matrices, expert_biases, expert_matrices
from flashmoe.store.manifest import to_json
from flashmoe.store.row_sources import Rows, RowSource, Transposed, check_shape
from flashmoe.store.sources import KeptRows, exact_format, take_rows

_log = logging.getLogger(__name__)
EXACT = Format("bf16")
# For matrices that must have one format and come in several: gate and up of a layer's experts.
MIXED = Format("q8", 32)
Keep = Literal["never", "quantised", "always"]
"""Which matrices stay in the format that holds them exactly: none, quantised ones, all."""
KEEP: dict[str, Keep] = {"auto": "quantised", "same": "always"}


@dataclass(frozen=True)
class PackOptions:
    """The formats of routed experts and of dense matrices that are not kept as they are.

    by_layer: the formats of some layers' experts, whatever the other options say.
    distinct: experts files to write; layers beyond share them in turn, instead of their own
    experts. For made-up models only; None: every layer has its own.
    experts_bits: mean bits per expert weight, for which by_layer is chosen when packing.
    """

    experts: Format
    dense: Format
    distinct: int | None = None
    keep_experts: Keep = "never"
    keep_dense: Keep = "never"
    down: Format | None = None
    calibration: str = ""
    by_layer: Mapping[int, fmt.ExpertFormats] = field(default_factory=dict)
    experts_bits: float | None = None

    @classmethod
    def parse(
        cls,
        experts: str,
        dense: str,
        group: int,
        down: str | None = None,
        bits: float | None = None,
    ) -> PackOptions:
        """From the option values of the command line."""
        if bits is not None and (experts != "auto" or down is not None):
            hint = "It chooses the formats of experts itself"
            got = experts if down is None else f"{experts}, down {down}"
            raise UsageError("--experts-bits beside a format", expected="auto", got=got, hint=hint)
        return cls(
            _option("--experts", experts, group, auto="q4"),
            _option("--dense", dense, group, auto="q8"),
            keep_experts=KEEP.get(experts, "never"),
            keep_dense=KEEP.get(dense, "never"),
            down=None if down is None else _option("--experts-down", down, group, auto="q4"),
            experts_bits=bits,
        )


@dataclass(frozen=True)
class EncodeMatrix:
    """Encode the sources, stacked or alternating in blocks of 8 rows, to `at` within the item.

    copies: the sources are kept exactly as they are quantised.
    """

    sources: tuple[RowSource, ...]
    interleave: bool
    format: Format
    at: int
    copies: bool = False

    @property
    def rows(self) -> int:
        """Rows of all sources together."""
        return sum(source.rows for source in self.sources)

    @property
    def cols(self) -> int:
        """Columns, the same in every source."""
        return self.sources[0].cols

    @property
    def nbytes(self) -> int:
        """Bytes that it becomes."""
        return self.format.nbytes(self.rows, self.cols)


@dataclass(frozen=True)
class CopyBias:
    """Write the only row of the source as float32 to `at` within the item.

    paired: gate and up alternate one by one in the source and, as their rows do, by 8 in the item.
    """

    source: Rows
    paired: bool
    at: int

    @property
    def nbytes(self) -> int:
        """Bytes that it becomes."""
        return 4 * self.source.cols


@dataclass(frozen=True)
class CopyVector:
    """Write the source as float32, `add` added to each element."""

    source: Rows
    add: float


Record = tuple[EncodeMatrix | CopyBias, ...]


@dataclass(frozen=True)
class Item:
    """One tensor or expert record, journalled as a whole: `nbytes` at `offset` of `file`."""

    key: str
    file: str
    offset: int
    nbytes: int
    parts: Record | CopyVector


@dataclass(frozen=True)
class PackPlan:
    """Everything to do. `manifest` has no checksums yet; items of a file are in file order."""

    manifest: fmt.Manifest
    items: tuple[Item, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all items."""
        return sum(item.nbytes for item in self.items)

    @property
    def total_bytes(self) -> int:
        """Bytes of all safetensors files and small files."""
        files = sum(size for _, size in self.manifest.data_files().values())
        return files + sum(file.nbytes for file in self.manifest.files.values())


def make_plan(
    family: str,
    source_name: str,
    specs: WeightSpecs,
    tensors: Mapping[str, SourceTensor],
    files: Mapping[str, fmt.SmallFile],
    options: PackOptions,
    quantization: Quantization | None = None,
) -> PackPlan:
    """The plan that packs `tensors` of a checkpoint.

    Raises:
        CheckpointError: a tensor is missing, unknown or of a type that is not supported.
        ConfigError: a tensor's shape is not the one that follows from the config.
        UsageError: the chosen group size does not divide a matrix's columns.
    """
    names = Names(tensors, source_name, specs.spellings, quantization)
    resident = {spec.name: _matrix(spec, names, options) for spec in specs.matrices}
    vectors = {spec.name: _vector(spec, names) for spec in specs.vectors}
    matrices = {spec.layer: expert_matrices(spec, names) for spec in specs.experts}
    layouts = _layouts(specs.experts, options, matrices)
    records = {
        spec.layer: _records(spec, names, layouts[spec.layer], matrices[spec.layer])
        for spec in specs.experts
    }
    # Of the largest the first; every layer's fits into what holds it.
    largest = max(layouts.values(), key=lambda layout: layout.record_bytes)
    names.finish(specs.ignored)
    manifest = fmt.Manifest(
        family=family,
        source_name=source_name,
        experts_format=largest.gate_up,
        dense_format=options.dense,
        tensors={name: fmt.Matrix(p.format, p.rows, p.cols) for name, p in resident.items()}
        | {spec.name: fmt.Vector(spec.shape) for spec in specs.vectors},
        experts=largest,
        layers=_expert_layers(layouts, largest, options.distinct),
        files=files,
        calibration=options.calibration,
    )
    parts: dict[str, Record | CopyVector] = {name: (part,) for name, part in resident.items()}
    parts |= vectors
    items = _resident_items(manifest, parts) + _expert_items(manifest, records)
    return PackPlan(manifest, tuple(items))


def _expert_layers(
    layouts: Mapping[int, fmt.ExpertLayout], largest: fmt.ExpertLayout, distinct: int | None
) -> tuple[fmt.ExpertLayer, ...]:
    """Layers without checksums yet; those from `distinct` on share the files of the first."""
    layers = []
    for number, owner in _owners(sorted(layouts), distinct).items():
        formats = layouts[owner].formats
        own = None if formats == largest.formats else formats
        shares = None if owner == number else owner
        layers.append(fmt.ExpertLayer(number, (0,) * largest.num_experts, shares, own))
    return tuple(layers)


def _owners(numbers: Sequence[int], distinct: int | None) -> dict[int, int]:
    """Of each layer the one whose file it uses."""
    own = len(numbers) if distinct is None else distinct
    return {number: numbers[at % own] for at, number in enumerate(numbers)}


def fingerprint(plan: PackPlan, sources: Mapping[str, tuple[int, int]]) -> str:
    """Identifies plan and sources (file name -> size, mtime in ns): a resumed pack must agree."""
    text = to_json(plan.manifest) + repr(sorted(sources.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _option(option: str, name: str, group: int, auto: str) -> Format:
    name = {"auto": auto, "same": EXACT.name}.get(name, name)
    if name not in ENCODED:
        expected = " | ".join((*KEEP, *ENCODED))
        raise UsageError("unknown weight format", where=option, expected=expected, got=name)
    # A format that comes in one size only takes that, whatever the others are to have.
    sizes = groups(name)
    return Format(name, group if len(sizes) > 1 else sizes[0])


def _matrix(spec: MatrixSpec, names: Names, options: PackOptions) -> EncodeMatrix:
    sources = tuple(_slice(source, spec.cols, names) for source in spec.sources)
    keep, format_ = options.keep_dense, options.dense
    if spec.role == "exact":
        keep, format_ = (keep if keep == "never" else "quantised"), EXACT
    format_ = _choose(keep, format_, [sources], spec.name)
    return _encode(sources, spec.interleave, format_, 0)


def _slice(source: Source, cols: int, names: Names) -> RowSource:
    shape = source.shape(cols)
    if source.transposed:
        return Transposed(take_rows(names, source.name, shape, source.first, cols))
    return take_rows(names, source.name, shape, source.first, source.rows, source.step)


def _encode(
    sources: tuple[RowSource, ...], interleave: bool, format_: Format, at: int
) -> EncodeMatrix:
    first = sources[0]
    if not format_.fits(first.cols):
        raise UsageError(
            f"{format_.name} does not fit {first.cols} columns",
            where=first.tensor.name,
            expected=f"a multiple of {format_.step}",
            hint="Choose a smaller --group or bf16",
        )
    if len({source.dtype for source in sources}) > 1:
        names = ", ".join(source.tensor.name for source in sources)
        raise CheckpointError("tensors of one matrix differ in type", where=names)
    if interleave and first.rows % fmt.INTERLEAVE:
        raise ConfigError(
            "unsupported intermediate size",
            where=first.tensor.name,
            expected=f"a multiple of {fmt.INTERLEAVE} rows",
            got=first.rows,
        )
    kept = all(isinstance(one, KeptRows) and one.exact == format_ for one in sources)
    return EncodeMatrix(sources, interleave, format_, at, copies=kept)


def _vector(spec: VectorSpec, names: Names) -> CopyVector:
    tensor = names.take(spec.source)
    check_shape(tensor, spec.shape, tuple(INTEGER_TYPES) if spec.below else WEIGHT_TYPES)
    # MLX has added the 1 of 1 + w itself.
    mlx = names.quantization is not None and names.quantization.method == "mlx"
    add = 0.0 if mlx else spec.offset
    return CopyVector(Rows(tensor, 0, 1, math.prod(spec.shape)), add)


def _choose(
    keep: Keep, otherwise: Format, matrices: Iterable[Sequence[RowSource]], what: str
) -> Format:
    """The one format of matrices, each of some sources: what holds all of them exactly, or not."""
    found = {exact_format(source) for sources in matrices for source in sources}
    if keep == "quantised" and len(found) > 1 and not found & {None, EXACT}:
        names = ", ".join(sorted(format_.name for format_ in found if format_))
        _log.warning("%s differ in type (%s): they become %s", what, names, MIXED.name)
        return MIXED
    exact = next(iter(found)) if len(found) == 1 else None
    if keep == "never" or exact is None or (keep == "quantised" and exact == EXACT):
        return otherwise
    return exact


def _layouts(
    experts: Sequence[ExpertsSpec],
    options: PackOptions,
    matrices: Mapping[int, Sequence[Matrices]],
) -> dict[int, fmt.ExpertLayout]:
    """Of each layer; one that uses another's file has the layout of that one."""
    strangers = options.by_layer.keys() - matrices.keys()
    if strangers:
        expected = f"layers with experts: {min(matrices)} to {max(matrices)}"
        raise UsageError(
            "no such layer", where="formats by layer", expected=expected, got=min(strangers)
        )
    made = {
        e.layer: fmt.ExpertLayout(
            e.num_experts,
            e.hidden_size,
            e.intermediate_size,
            *_formats(e.layer, options, matrices[e.layer]),
            activation=e.activation,
            bias=bool(e.gate_up_bias),
        )
        for e in experts
    }
    layouts = {
        layer: made[owner] for layer, owner in _owners(sorted(made), options.distinct).items()
    }
    kinds = {layout.of(fmt.ExpertFormats(EXACT, EXACT)) for layout in layouts.values()}
    assert len(kinds) == 1, "a pack has one expert shape"
    return layouts


def _formats(
    layer: int, options: PackOptions, matrices: Sequence[Matrices]
) -> tuple[Format, Format]:
    """Of gate and up, and of down, of a layer's experts."""
    if layer in options.by_layer:
        return options.by_layer[layer].gate_up, options.by_layer[layer].down
    keep, otherwise, what = options.keep_experts, options.experts, f"experts of layer {layer}"
    gate_up = _choose(keep, otherwise, [(gate, up) for gate, up, _ in matrices], what)
    down = _choose(keep, options.down or otherwise, [(down,) for _, _, down in matrices], what)
    return gate_up, down


def _records(
    spec: ExpertsSpec, names: Names, layout: fmt.ExpertLayout, matrices: Sequence[Matrices]
) -> list[Record]:
    biases = expert_biases(spec, names)
    records: list[Record] = [
        (
            _encode((gate, up), True, layout.gate_up, 0),
            _encode((down,), False, layout.down, layout.down_offset),
        )
        for gate, up, down in matrices
    ]
    if biases is None:
        return records
    first, second = layout.bias_offset, layout.bias_offset + 8 * layout.intermediate_size
    return [
        (*record, CopyBias(gate_up, True, first), CopyBias(down, False, second))
        for record, (gate_up, down) in zip(records, biases, strict=True)
    ]


def _resident_items(manifest: fmt.Manifest, parts: Mapping[str, Record | CopyVector]) -> list[Item]:
    start, offsets = len(manifest.resident_header()), manifest.tensor_offsets()
    return [
        Item(name, fmt.RESIDENT, start + offsets[name], tensor.stored_bytes, parts[name])
        for name, tensor in manifest.tensors.items()
    ]


def _expert_items(manifest: fmt.Manifest, records: Mapping[int, list[Record]]) -> list[Item]:
    owners = [layer for layer in manifest.layers if layer.shares is None]
    return [item for layer in owners for item in _layer_items(manifest, layer, records)]


def _layer_items(
    manifest: fmt.Manifest, layer: fmt.ExpertLayer, records: Mapping[int, list[Record]]
) -> list[Item]:
    start = len(manifest.experts_header(layer.layer))
    size = manifest.layouts[layer.layer].record_bytes
    return [
        Item(expert_key(layer.layer, expert), layer.file, start + expert * size, size, parts)
        for expert, parts in enumerate(records[layer.layer])
    ]


def stored_by(layer: fmt.ExpertLayer) -> int:
    """The layer whose items the records of a layer are."""
    return layer.layer if layer.shares is None else layer.shares


def expert_key(layer: int, expert: int) -> str:
    """The item key of an expert record."""
    return f"layers.{layer}.mlp.experts.{expert}"
