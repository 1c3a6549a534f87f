"""`flashmoe info`: what a packed model is and how large its parts are."""

from __future__ import annotations

import dataclasses
import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from flashmoe.cli.models import ModelPath

if TYPE_CHECKING:
    from flashmoe.store.info import PackInfo


def info(
    model: ModelPath,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show family, sizes, bits, experts and bytes per token of a packed model."""
    from flashmoe.models.registry import load_family
    from flashmoe.store.info import pack_info
    from flashmoe.store.model import open_model

    packed = open_model(model)
    config = load_family(packed.manifest.family).read_config(packed.config)
    facts = pack_info(packed, config.num_experts_per_tok)
    print(json_module.dumps(dataclasses.asdict(facts)) if json else _as_text(facts))


def _rows(nbytes: int) -> dict[str, str]:
    from flashmoe.cli.units import human_bytes

    if nbytes == 0:
        return {}
    text = f"{human_bytes(nbytes)} of the resident part, left on disk where memory is short"
    return {"input embedding": text}


def _as_text(facts: PackInfo) -> str:
    from flashmoe.cli.units import human_bytes, human_count

    rows = {
        "family": f"{facts.family} (from {facts.source})",
        "parameters": f"{human_count(facts.parameters)},"
        f" {human_count(facts.active_parameters)} active per token",
        **({"runs": "in place, from a checkpoint that was not packed"} if facts.in_place else {}),
        "formats": f"experts {_formats(facts)}, dense {facts.dense_format}",
        "bits per weight": f"{facts.bits_per_weight:.2f},"
        f" experts {facts.expert_bits_per_weight:.2f}",
        "size": f"{human_bytes(facts.total_bytes)}: resident {human_bytes(facts.resident_bytes)},"
        f" experts {human_bytes(facts.expert_bytes)}",
        **_rows(facts.row_bytes),
        "experts": f"{facts.moe_layers} layers of {facts.num_experts}{_shared(facts)},"
        f" {facts.num_experts_per_tok} per token, {human_bytes(facts.record_bytes)} each"
        f"{_waste(facts)}",
        "bytes per token": f"{human_bytes(facts.bytes_per_token)} of experts, if none is cached",
    }
    return "\n".join(f"{name + ':':<17}{value}" for name, value in rows.items())


def _formats(facts: PackInfo) -> str:
    """What all layers have, or how many have which."""
    if len(facts.expert_formats) == 1:
        return next(iter(facts.expert_formats))
    counts = facts.expert_formats.items()
    return "; ".join(f"{formats} in {layers} layers" for formats, layers in counts)


def _waste(facts: PackInfo) -> str:
    """What slots of one size cost where layers differ."""
    if not facts.slot_waste:
        return ""
    return f" at most; {facts.slot_waste:.0%} of the cache stays empty behind smaller ones"


def _shared(facts: PackInfo) -> str:
    """That a synthetic model stands for a larger one."""
    shared = facts.expert_files < facts.moe_layers
    return f" on {facts.expert_files} distinct expert files" if shared else ""
