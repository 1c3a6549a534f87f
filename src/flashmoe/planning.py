"""What will be built of a pack, decided before any memory is taken."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from flashmoe.errors import MemoryBudgetError, PackError, UsageError
from flashmoe.experts.budget import (
    Budget,
    ExpertSizes,
    make_budget,
    memory_limit,
    parse_cache,
    swap_warning,
)
from flashmoe.experts.memory import Limit, read_system_memory
from flashmoe.experts.room import PromptCosts
from flashmoe.experts.tiers import device_budget
from flashmoe.models.registry import CARD_FAMILIES, family_name
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.card_sizes import CAPTURED_BYTES, CONTEXT_BYTES, weight_bytes, workspace_bytes
from flashmoe.ops.parts import CHUNK_STEP
from flashmoe.ops.threads import default_threads
from flashmoe.quant import ENCODED
from flashmoe.settings import DEFAULT_CONTEXT, EngineSettings
from flashmoe.sizes import parse_size
from flashmoe.sizing import device_workspace_bytes, floor_slots, scratch_bytes
from flashmoe.store.consistency import check_against
from flashmoe.store.format import MANIFEST, Manifest, Matrix
from flashmoe.store.model import StoredModel

_log = logging.getLogger(__name__)

# What the process takes beyond the named parts: allocator slack, thread stacks, kernel memory.
_RESERVE = 48 << 20
EMBEDDING, HEAD = "embed_tokens", "lm_head"
# What the kernels of ops/cuda decode (kernels/weights.py): not the formats of other programs, and
# of our own not these two.
CARD_FORMATS = frozenset(ENCODED) - {"q4n", "q5"}
# Tokens per prefill chunk where a card has room: weights are dequantised once per chunk.
CARD_CHUNKS = (4096, 2048, 1024, 512, 256, 128, 64)


@dataclass(frozen=True)
class ModelFacts:
    """What pack and settings say together, before any sum is made.

    state_bytes: of one sequence at full context. native_experts_per_token: the model's own K.
    """

    config: Any
    specs: WeightSpecs
    native_experts_per_token: int
    context_length: int
    kv_itemsize: int
    state_bytes: int


@dataclass(frozen=True)
class Plan:
    """What will be built: decided before memory is taken.

    state_bytes: of all sequences at full context. prefix_bytes: for kept prefixes.
    streamed: resident tensors that stay in the file (the input embedding or nothing).
    adaptive: the cache follows memory pressure and speed.
    """

    config: Any
    native_experts_per_token: int
    context_length: int
    kv_itemsize: int
    threads: int
    state_bytes: int
    prefix_bytes: int
    streamed: frozenset[str]
    budget: Budget
    costs: PromptCosts
    adaptive: bool


def read_facts(pack: StoredModel, family: ModuleType, settings: EngineSettings) -> ModelFacts:
    """Raises PackError if the pack does not hold what its config describes; UsageError."""
    config = _read_config(pack, family)
    specs = family.weights(config)
    check_against(pack.manifest, specs)
    native_k = config.num_experts_per_tok
    config = _with_experts_per_token(config, settings.experts_per_token)
    context = _context_length(config, settings.context_length)
    # A bf16 pack is there to be exact: rounding keys and values would be its largest error.
    kv_itemsize = 4 if pack.manifest.dense_format.name == "bf16" else 2
    state = family.state_bytes(config, context, kv_itemsize)
    return ModelFacts(config, specs, native_k, context, kv_itemsize, state)


def make_plan(pack: StoredModel, family: ModuleType, settings: EngineSettings) -> Plan:
    """Decide sizes; raises MemoryBudgetError with the sum if the floor is above the limit.

    Raises PackError if the pack does not hold what its config describes.
    """
    facts = read_facts(pack, family, settings)
    config, specs = facts.config, facts.specs
    sizes = _expert_sizes(pack, facts.native_experts_per_token, settings)

    def sum_with(streamed: frozenset[str]) -> Budget:
        return _budget(_parts(pack, facts, settings, streamed), sizes, settings)

    streamed, budget = _choose(sum_with, pack, sizes, settings)
    _warn_of_swap(budget)
    per_token = scratch_bytes(config, specs, 1) - scratch_bytes(config, specs, 0)
    return Plan(
        config=config,
        native_experts_per_token=facts.native_experts_per_token,
        context_length=facts.context_length,
        kv_itemsize=facts.kv_itemsize,
        threads=settings.threads or default_threads(),
        state_bytes=facts.state_bytes * settings.parallel,
        prefix_bytes=_size(settings.prefix_ram, "--prefix-ram"),
        streamed=streamed,
        budget=budget,
        costs=_prompt_costs(pack, budget, sizes, per_token, config.num_experts_per_tok, settings),
        adaptive=settings.cache == "auto",
    )


def least_memory(pack: StoredModel, family: ModuleType, settings: EngineSettings) -> Budget:
    """The sum below which the model does not run, whatever the limit. Raises as read_facts."""
    facts = read_facts(pack, family, settings)
    streamed = frozenset({EMBEDDING}) if HEAD in pack.manifest.tensors else frozenset[str]()
    sizes = _expert_sizes(pack, facts.native_experts_per_token, settings)
    parts = _parts(pack, facts, settings, streamed)
    parts["interpreter and tokenizer"] = read_system_memory().process + _RESERVE
    return make_budget(Limit(2**62, "none"), parts, sizes, 0)


def _parts(
    pack: StoredModel, facts: ModelFacts, settings: EngineSettings, streamed: frozenset[str]
) -> dict[str, int]:
    """Everything but the cache and the process, if these tensors stay in the file."""
    prefix_bytes = _size(settings.prefix_ram, "--prefix-ram")
    turned = pack.reader_bytes * settings.readers
    rows = {f"rows of {name}": pack.rows(name).buffer_bytes for name in streamed}
    return {
        "resident weights": pack.resident_room(streamed),
        **rows,
        **_sequence_parts(facts, settings.parallel),
        **({"kept prefixes": prefix_bytes} if prefix_bytes else {}),
        **({"bytes being turned into experts": turned} if turned else {}),
    }


def _sequence_parts(facts: ModelFacts, parallel: int) -> dict[str, int]:
    """Memory for so many sequences: their states, a pass that has a token of each beside a chunk,
    and the logits that they choose from."""
    config, several = facts.config, parallel > 1
    scratch = scratch_bytes(config, facts.specs, CHUNK_STEP + (parallel if several else 0))
    whose = f"{parallel} states of" if several else "state of"
    return {
        f"{whose} {facts.context_length} tokens": facts.state_bytes * parallel,
        f"scratch of {CHUNK_STEP}-token chunks": scratch,
        **({"logits of sequences": 4 * parallel * config.vocab_size} if several else {}),
    }


def _size(given: int | str, option: str) -> int:
    if isinstance(given, int):
        return given
    return parse_size(given, option=option, whole=read_system_memory().physical)


def _choose(
    budget: Callable[[frozenset[str]], Budget],
    pack: StoredModel,
    sizes: ExpertSizes,
    settings: EngineSettings,
) -> tuple[frozenset[str], Budget]:
    """Which tensors stay in the file, and the sum.

    A step uses one row of the input embedding per token. Where it is not also the head and memory
    is short, experts make better use of its memory.
    """
    nothing, embedding = frozenset[str](), frozenset({EMBEDDING})
    if HEAD not in pack.manifest.tensors:
        return nothing, budget(nothing)
    try:
        held = budget(nothing)
    except MemoryBudgetError:
        return embedding, budget(embedding)
    if settings.cache == "auto" and held.slots < sizes.total:
        return embedding, budget(embedding)
    return nothing, held


def _prompt_costs(
    pack: StoredModel,
    budget: Budget,
    sizes: ExpertSizes,
    per_token: int,
    experts_per_token: int,
    settings: EngineSettings,
) -> PromptCosts:
    return PromptCosts(
        scratch_per_token=per_token,
        spare=budget.limit.nbytes - budget.total,
        slot_bytes=sizes.slot_bytes,
        layers=len(pack.manifest.layers),
        num_experts=pack.manifest.experts.num_experts,
        num_experts_per_tok=experts_per_token,
        floor=sizes.floor_slots,
        lendable=settings.cache != "all",
    )


def card_budget(pack: StoredModel, facts: ModelFacts, limit: Limit) -> tuple[int, Budget]:
    """Tokens per prefill chunk on a card, and the sum of its memory, slots for experts included.

    Raises MemoryBudgetError, with the sum, if the smallest chunk does not fit.
    """
    layout = pack.manifest.experts
    total = len(pack.manifest.layers) * layout.num_experts
    sizes = ExpertSizes(layout.record_bytes, total, facts.config.num_experts_per_tok)

    def budget(chunk: int) -> Budget:
        return device_budget(limit, _card_parts(pack, facts, chunk), sizes)

    return _largest_chunk([c for c in CARD_CHUNKS if _useful(c, facts)], budget)


def pinned_slots(
    pack: StoredModel, facts: ModelFacts, settings: EngineSettings, process: int
) -> int:
    """Experts that RAM holds beside a card: what --ram leaves beside a process of so many bytes.

    Raises MemoryBudgetError if those of a token do not fit.
    """
    sizes = _expert_sizes(pack, facts.native_experts_per_token, settings)
    parts = {"interpreter, torch and tokenizer": process}
    return make_budget(_ram_limit(settings), parts, sizes, "auto").slots


def _card_parts(pack: StoredModel, facts: ModelFacts, chunk: int) -> dict[str, int]:
    layout = pack.manifest.experts
    workspace = device_workspace_bytes(
        facts.config, facts.specs, chunk, workspace_bytes(layout, layout.num_experts)
    )
    return {
        "CUDA context, kernels, graphs": CONTEXT_BYTES,
        "resident weights": card_weight_bytes(pack, facts),
        f"state of {facts.context_length} tokens": facts.state_bytes,
        "captured decode steps": CAPTURED_BYTES,
        f"workspace of {chunk}-token chunks": workspace,
    }


def card_weight_bytes(pack: StoredModel, facts: ModelFacts) -> int:
    """What the resident weights take on a card."""
    tensors = len(facts.specs.matrices) + len(facts.specs.vectors)
    return weight_bytes(pack.resident_bytes, tensors)


def _largest_chunk(chunks: Sequence[int], budget: Callable[[int], Budget]) -> tuple[int, Budget]:
    """The first of the chunks, falling, whose sum fits; what the last one raises if none does."""
    for chunk in chunks[:-1]:
        try:
            return chunk, budget(chunk)
        except MemoryBudgetError:
            continue  # a smaller chunk needs less workspace
    return chunks[-1], budget(chunks[-1])


def _useful(chunk: int, facts: ModelFacts) -> bool:
    """Whether a chunk is no longer than the context needs."""
    return chunk == CARD_CHUNKS[-1] or chunk < 2 * facts.context_length


def card_lacks(manifest: Manifest) -> str | None:
    """What a pack has that the CUDA backend cannot run, None if that can run it."""
    if manifest.family not in CARD_FAMILIES:
        return f"family {manifest.family}"
    if manifest.mixed:
        return "layers whose experts differ in format"
    matrices = (tensor for tensor in manifest.tensors.values() if isinstance(tensor, Matrix))
    dense = {matrix.format.name for matrix in matrices} - CARD_FORMATS
    if dense:
        return f"format {min(dense)} of dense matrices"
    experts = {manifest.experts.gate_up.name, manifest.experts.down.name} - CARD_FORMATS
    return f"format {min(experts)} of experts" if experts else None


def _read_config(pack: StoredModel, family: ModuleType) -> Any:
    raw = pack.config
    found = family_name(raw)
    if found != pack.manifest.family:
        raise PackError(
            "the pack contradicts its config",
            where=f"{pack.path / MANIFEST}: family",
            expected=found,
            got=pack.manifest.family,
        )
    return family.read_config(raw)


def _expert_sizes(
    pack: StoredModel, num_experts_per_tok: int, settings: EngineSettings
) -> ExpertSizes:
    layout = pack.manifest.experts
    return ExpertSizes(
        slot_bytes=layout.record_bytes,
        total=len(pack.manifest.layers) * layout.num_experts,
        floor=floor_slots(num_experts_per_tok, settings.readers),
    )


def _budget(parts: Mapping[str, int], sizes: ExpertSizes, settings: EngineSettings) -> Budget:
    cache = settings.cache
    wanted = parse_cache(cache, sizes) if isinstance(cache, str) else cache
    parts = {**parts, "interpreter and tokenizer": read_system_memory().process + _RESERVE}
    return make_budget(_ram_limit(settings), parts, sizes, wanted)


def _ram_limit(settings: EngineSettings) -> Limit:
    """The tightest of --ram, cgroup and machine."""
    ram = None if settings.ram is None else _size(settings.ram, "--ram")
    return memory_limit(read_system_memory(), ram)


def _warn_of_swap(budget: Budget) -> None:
    warning = swap_warning(read_system_memory(), budget)
    if warning is not None:
        _log.warning("%s", warning)


def _with_experts_per_token(config: Any, wanted: int | None) -> Any:
    own = config.num_experts_per_tok
    if wanted is None or wanted == own:
        return config
    if wanted > own:
        raise UsageError(
            "more experts than the model was trained for",
            where="experts_per_token",
            expected=f"1 to {own}",
            got=wanted,
        )
    return dataclasses.replace(config, num_experts_per_tok=wanted)


def _context_length(config: Any, wanted: int | None) -> int:
    longest = config.max_position_embeddings
    if wanted is not None and wanted > longest:
        raise UsageError(
            "longer than the model's context",
            where="context_length",
            expected=f"at most {longest}",
            got=wanted,
        )
    return wanted or min(longest, DEFAULT_CONTEXT)
