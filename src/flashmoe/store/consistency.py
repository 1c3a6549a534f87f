"""Whether a pack holds what its family, as its config describes it, asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.errors import PackError
from flashmoe.models.specs import WeightSpecs
from flashmoe.store.format import MANIFEST, Manifest, Vector

Shape = tuple[int, ...]


def check_against(manifest: Manifest, specs: WeightSpecs) -> None:
    """Names and shapes of all tensors and experts agree.

    Raises:
        PackError: names the first that does not.
    """
    matrices, vectors = _shapes(manifest)
    _compare_all({spec.name: (spec.rows, spec.cols) for spec in specs.matrices}, matrices)
    _compare_all({spec.name: spec.shape for spec in specs.vectors}, vectors)
    layout = manifest.experts
    found = (layout.num_experts, layout.hidden_size, layout.intermediate_size)
    for spec in specs.experts:
        shape = (spec.num_experts, spec.hidden_size, spec.intermediate_size)
        _compare(f"experts of layer {spec.layer}", shape, found)
        kind = (spec.activation, bool(spec.gate_up_bias))
        _compare(f"kind of layer {spec.layer}", kind, (layout.activation, layout.bias))
    layers = tuple(layer.layer for layer in manifest.layers)
    _compare("layers with experts", tuple(spec.layer for spec in specs.experts), layers)


def _shapes(manifest: Manifest) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Shapes of matrices and of vectors by name."""
    matrices: dict[str, Shape] = {}
    vectors: dict[str, Shape] = {}
    for name, tensor in manifest.tensors.items():
        if isinstance(tensor, Vector):
            vectors[name] = tensor.shape
        else:
            matrices[name] = (tensor.rows, tensor.cols)
    return matrices, vectors


def _compare_all(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        _compare(name, wanted.get(name), found.get(name))


def _compare(what: str, wanted: tuple[Any, ...] | None, found: tuple[Any, ...] | None) -> None:
    if wanted != found:
        raise PackError(
            "the pack contradicts its config",
            where=f"{MANIFEST}: {what}",
            expected="nothing" if wanted is None else list(wanted),
            got="nothing" if found is None else list(found),
        )
