"""`flashmoe families`: which models are supported, and how large the known ones are."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flashmoe.cli.units import human_bytes, human_count

if TYPE_CHECKING:
    from flashmoe.bench.families import Family, ModelSize

_HEAD = """\
# Models

Written by `flashmoe families --markdown` (`make models-doc`) from the registry and from the shapes
of `flashmoe synth`; a test compares. A checkpoint of another `model_type` is refused with the list
of those below.

## Families

| family | `model_type` | what it is | logits beside transformers |
|---|---|---|---|
"""
_SHOWN = """
## What is shown of each

| family | {columns} | GPU |
|---|{rules}---|
"""
_TESTS = """
What shows it:

{proofs}

How logits are tested: transformers makes, saves and runs a tiny random model of the types in the
fourth column of the first table, in float32 on weights that bf16 holds exactly. Packed as
bf16, ours gives the same logits within `LOGITS_ORACLE` (tests/support/tolerances.py) and the same
choice wherever it is clear, from experts stored one by one and fused. A prompt in chunks of 1 to
149 tokens gives the logits of the whole one, within `LOGITS_CHUNKED`. A type that is not in that
column differs in sizes from one that is.

Left out: vision parts and multi-token prediction of all families; dense models of a family
(Gemma 4 E2B, 31B). On a GPU only families with a "yes" run; the others are refused.

## Known models

Computed, not measured: packed as `flashmoe pack` does it, experts q4 and the rest q8, in groups of
64. A token reads this much if no expert is cached. `flashmoe synth NAME` makes a model of the
shape with random weights.

| model | family | parameters | packed | resident | experts | of these per token | read per token |
|---|---|---|---|---|---|---|---|
"""


def families(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/models.md.")] = False,
) -> None:
    """Show the model families, their known models and what those take at 4 bits."""
    from flashmoe.bench.families import families

    found = list(families())
    if json:
        print(json_module.dumps([asdict(family) for family in found]))
    elif markdown:
        print(as_markdown(found), end="")
    else:
        print("\n".join(line for family in found for line in _text(family)))


def _text(family: Family) -> Iterator[str]:
    """A family, then a line per model."""
    yield f"{family.name}: {family.summary}"
    for model in family.models:
        yield (
            f"  {model.name:<20}{human_count(model.parameters):>6} parameters, "
            f"{human_bytes(model.total_bytes)} at 4 bits, "
            f"{human_bytes(model.resident_bytes)} of it resident, "
            f"{human_bytes(model.bytes_per_token)} read per token"
        )


def as_markdown(found: list[Family]) -> str:
    """All of docs/models.md."""
    from flashmoe.bench.families import CELLS

    shown = _SHOWN.format(columns=" | ".join(CELLS), rules="---|" * len(CELLS))
    proofs = "\n".join(f"- {cell}: `{test}`" for cell, (test, _) in CELLS.items() if test)
    rows = [_row(model, family) for family in found for model in family.models]
    return "".join(
        [
            _HEAD,
            *map(_family_row, found),
            shown,
            *(_shown_row(family, tuple(CELLS)) for family in found),
            _TESTS.format(proofs=proofs),
            *rows,
        ]
    )


def _shown_row(family: Family, columns: tuple[str, ...]) -> str:
    cells = ["yes" if column in family.shown else "no" for column in columns]
    return f"| {' | '.join([family.name, *cells, 'yes' if family.on_card else 'no'])} |\n"


def _family_row(family: Family) -> str:
    types, compared = (
        ", ".join(f"`{kind}`" for kind in kinds) for kinds in (family.model_types, family.compared)
    )
    return f"| {family.name} | {types} | {family.summary} | {compared} |\n"


def _row(model: ModelSize, family: Family) -> str:
    cells = [
        model.name,
        family.name,
        human_count(model.parameters),
        human_bytes(model.total_bytes),
        human_bytes(model.resident_bytes),
        f"{model.moe_layers} x {model.num_experts} of {human_bytes(model.record_bytes)}",
        f"{model.moe_layers} x {model.num_experts_per_tok}",
        human_bytes(model.bytes_per_token),
    ]
    return f"| {' | '.join(cells)} |\n"
