"""The `families` verb, and docs/models.md, which it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashmoe.bench.families import CELLS, EXPERTS, model_size
from flashmoe.bench.shapes import SHAPES
from flashmoe.bench.synth import SyntheticCheckpoint
from flashmoe.cli import make_app
from flashmoe.models.registry import FAMILIES, family_name
from flashmoe.store.pack import plan_pack
from flashmoe.store.plan import PackOptions

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def shown(*options: str) -> str:
    result = CliRunner().invoke(make_app(), ["families", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_document_is_fresh() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == shown("--markdown"), "run make models-doc"


def test_every_family_and_every_shape_is_listed() -> None:
    found = json.loads(shown("--json"))
    assert [family["name"] for family in found] == [*dict.fromkeys(FAMILIES.values())]
    assert {model["name"] for family in found for model in family["models"]} == {*SHAPES}
    text = shown()
    assert all(family["name"] in text for family in found)


def test_every_cell_names_a_test_that_is_there() -> None:
    root = DOCUMENT.parents[1]
    for test, able in CELLS.values():
        path, _, name = test.partition("::")
        assert not able or (root / path).is_file()
        assert not name or f"def {name}(" in (root / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("family", sorted(set(FAMILIES.values())))
def test_every_shape_packs(family: str) -> None:
    """Of each family's first known model, every tensor is planned once: the specs and the
    checkpoint's names and shapes agree."""
    name = next(name for name, config in SHAPES.items() if family_name(config) == family)
    layers = 4 + SHAPES[name].get("first_k_dense_replace", 0)
    with SyntheticCheckpoint(name, layers) as checkpoint:
        manifest = plan_pack(checkpoint, PackOptions.parse("q4", "q8", EXPERTS.group)).manifest
    assert manifest.family == family
    assert len(manifest.layers) == 4


def test_sizes_are_those_of_a_pack() -> None:
    for name in ("olmoe-1b-7b", "gpt-oss-20b", "glm-4.5-air"):
        with SyntheticCheckpoint(name) as checkpoint:
            manifest = plan_pack(checkpoint, PackOptions.parse("q4", "q8", EXPERTS.group)).manifest
        size = model_size(name, SHAPES[name])
        assert size.resident_bytes == manifest.resident_bytes
        assert size.record_bytes == manifest.experts.record_bytes
        assert size.moe_layers == len(manifest.layers)
