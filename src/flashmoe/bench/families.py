"""What is supported, from the registry, and how large the known models of each family are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flashmoe.bench.shapes import SHAPES
from flashmoe.models.registry import (
    CARD_FAMILIES,
    CHAT_FAMILIES,
    FAMILIES,
    IN_PLACE_FAMILIES,
    ORACLE_TYPES,
    family_name,
    load_family,
)
from flashmoe.models.specs import ExpertsSpec, MatrixSpec, WeightSpecs
from flashmoe.quant import Format
from flashmoe.store.format import ExpertLayout, Matrix, Vector

# What `flashmoe pack` makes unless told otherwise; routers stay bf16.
EXPERTS, DENSE, EXACT = Format("q4", 64), Format("q8", 64), Format("bf16")


# What a family is to show: column -> (the test that shows it, the families it runs for).
_COMPARED = frozenset(FAMILIES[kind] for kind in ORACLE_TYPES)
CELLS = {
    "logits": ("tests/test_model_oracle.py::test_logits_equal_the_oracle", _COMPARED),
    "chunked prefill": (
        "tests/test_model_oracle.py::test_prefill_in_chunks_of_any_size_agrees",
        _COMPARED,
    ),
    "chat template": ("tests/models/test_chat.py", CHAT_FAMILIES),
    "in place": (
        "tests/store/test_inplace.py::test_outputs_are_those_of_the_pack",
        IN_PLACE_FAMILIES,
    ),
    "pack": ("tests/cli/test_families.py::test_every_shape_packs", frozenset(FAMILIES.values())),
}


@dataclass(frozen=True)
class ModelSize:
    """A known model packed with EXPERTS and DENSE, in bytes; headers of files are left out.

    bytes_per_token: experts that one decoded token reads if none is cached.
    """

    name: str
    parameters: int
    total_bytes: int
    resident_bytes: int
    moe_layers: int
    num_experts: int
    num_experts_per_tok: int
    record_bytes: int
    bytes_per_token: int


@dataclass(frozen=True)
class Family:
    """summary: one line. compared: those of model_types whose logits are tested beside
    transformers. shown: what of CELLS it can do. on_card: whether the CUDA backend runs it."""

    name: str
    summary: str
    model_types: tuple[str, ...]
    compared: tuple[str, ...]
    shown: tuple[str, ...]
    on_card: bool
    models: tuple[ModelSize, ...]


def families() -> Iterator[Family]:
    """Every family of the registry, in its order."""
    sizes = [(family_name(config), model_size(name, config)) for name, config in SHAPES.items()]
    for name in dict.fromkeys(FAMILIES.values()):
        types = tuple(kind for kind, family in FAMILIES.items() if family == name)
        yield Family(
            name=name,
            summary=_summary(load_family(name).__doc__ or ""),
            model_types=types,
            compared=tuple(kind for kind in types if kind in ORACLE_TYPES),
            shown=tuple(cell for cell, (_, able) in CELLS.items() if name in able),
            on_card=name in CARD_FAMILIES,
            models=tuple(size for family, size in sizes if family == name),
        )


def model_size(name: str, config: dict[str, Any]) -> ModelSize:
    """Sizes of the model that config.json describes."""
    family = load_family(family_name(config))
    parsed = family.read_config(dict(config))
    specs: WeightSpecs = family.weights(parsed)
    first, layers = specs.experts[0], len(specs.experts)
    record = _record_bytes(first)
    resident = sum(_matrix_bytes(spec) for spec in specs.matrices)
    resident += sum(Vector(spec.shape).stored_bytes for spec in specs.vectors)
    return ModelSize(
        name=name,
        parameters=_parameters(specs),
        total_bytes=resident + layers * first.num_experts * record,
        resident_bytes=resident,
        moe_layers=layers,
        num_experts=first.num_experts,
        num_experts_per_tok=parsed.num_experts_per_tok,
        record_bytes=record,
        bytes_per_token=layers * parsed.num_experts_per_tok * record,
    )


def _record_bytes(spec: ExpertsSpec) -> int:
    layout = ExpertLayout(
        spec.num_experts,
        spec.hidden_size,
        spec.intermediate_size,
        gate_up=EXPERTS,
        down=EXPERTS,
        activation=spec.activation,
        bias=bool(spec.gate_up_bias),
    )
    return layout.record_bytes


def _matrix_bytes(spec: MatrixSpec) -> int:
    format_ = EXACT if spec.role == "exact" else DENSE
    return Matrix(format_, spec.rows, spec.cols).stored_bytes


def _parameters(specs: WeightSpecs) -> int:
    """Of matrices and experts: vectors and biases are too few to count."""
    experts = sum(3 * e.num_experts * e.hidden_size * e.intermediate_size for e in specs.experts)
    return experts + sum(spec.rows * spec.cols for spec in specs.matrices)


def _summary(text: str) -> str:
    """The first sentence of a module's docstring."""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")
