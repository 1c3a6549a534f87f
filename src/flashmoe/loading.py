"""From a packed model and settings to a running engine: sizes first, then memory, then weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from flashmoe import _native
from flashmoe.errors import MemoryBudgetError, PackError, UsageError
from flashmoe.experts.budget import Budget, ExpertSizes, make_budget, memory_limit, parse_cache
from flashmoe.experts.cache import ExpertCache, open_cache
from flashmoe.experts.memory import read_system_memory
from flashmoe.experts.source import Reader
from flashmoe.experts.stats import CacheStats
from flashmoe.experts.streamed import StreamedExperts
from flashmoe.generate.engine import Engine
from flashmoe.models.decoder import Decoder, Weights
from flashmoe.models.registry import family_name, load_family
from flashmoe.models.specs import WeightSpecs
from flashmoe.ops.base import Ops
from flashmoe.ops.cpu import CpuOps
from flashmoe.ops.threads import default_threads
from flashmoe.settings import DEFAULT_CONTEXT, PREFILL_CHUNKS, EngineSettings
from flashmoe.sizes import parse_size
from flashmoe.sizing import floor_slots, scratch_bytes
from flashmoe.store.consistency import check_against
from flashmoe.store.format import MANIFEST
from flashmoe.store.packed import LoadedMatrix, PackedModel
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.stop_tokens import stop_ids
from flashmoe.text.tokenizer import Tokenizer

# What the process takes beyond the named parts: allocator slack, thread stacks, kernel memory.
_RESERVE = 48 << 20
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Plan:
    """What will be built: decided before memory is taken."""

    config: Any
    native_experts_per_token: int
    context_length: int
    kv_itemsize: int
    prefill_chunk: int
    threads: int
    state_bytes: int
    budget: Budget


@dataclass(frozen=True)
class TextParts:
    """What turns text into token ids and back."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate
    stop_ids: frozenset[int]

    @staticmethod
    def load(path: Path) -> TextParts:
        """From the tokenizer files of a pack."""
        tokenizer, template = Tokenizer(path), ChatTemplate(path)
        return TextParts(tokenizer, template, stop_ids(path, tokenizer, template))


def text_parts(pack: PackedModel) -> TextParts | None:
    """The text parts of a pack, None if it has no tokenizer."""
    return TextParts.load(pack.path) if TOKENIZER in pack.manifest.files else None


class ExpertStore(Protocol):
    """What holds the experts of an open model."""

    @property
    def stats(self) -> CacheStats:
        """Counts since it was opened."""

    def close(self) -> None:
        """Stop the reads, close the files and let the memory go."""


@dataclass(frozen=True)
class LoadedModel:
    """Everything that one open model owns."""

    path: Path
    family: str
    config: Any
    engine: Engine
    cache: ExpertStore
    text: TextParts | None
    fixed_figures: dict[str, Any]

    def cache_counts(self) -> tuple[int, int, int]:
        """Hits, misses and bytes read since the model was opened."""
        stats = self.cache.stats
        return stats.hits, stats.misses, stats.bytes_read

    def close(self) -> None:
        """Stop the reads, close the files and let the memory go."""
        self.engine.close()
        self.cache.close()


def load_model(
    path: Path,
    settings: EngineSettings,
    *,
    make_ops: Callable[[int, str], Ops] = CpuOps,
    make_reader: Callable[[int], Reader] | None = None,
) -> LoadedModel:
    """Open a pack and build its engine; errors as for flashmoe.load.

    make_ops, make_reader: another backend (of threads and isa) or reader (of threads).
    """
    pack = PackedModel.open(path)
    family = load_family(pack.manifest.family)
    text = text_parts(pack)
    plan = make_plan(pack, family, settings)
    ops = make_ops(plan.threads, _known_isa(settings.isa))
    weights = load_weights(pack, ops, plan.threads)
    cache = open_cache(
        pack,
        slots=plan.budget.slots,
        slot_bytes=pack.manifest.experts.record_bytes,
        reader_threads=settings.readers,
        prefault_threads=plan.threads,
        keep=plan.budget.keep,
        verify=settings.verify,
        make_reader=make_reader,
    )
    engine = _engine(pack, plan, family.build(plan.config, weights), cache, ops)
    return LoadedModel(
        path=path,
        family=pack.manifest.family,
        config=plan.config,
        engine=engine,
        cache=cache,
        text=text,
        fixed_figures=_fixed_figures(pack, plan, cache, settings.isa),
    )


def _known_isa(name: str) -> str:
    """The name, or for "auto" the best of this machine."""
    available = _native.available_isas()
    if name not in ("auto", *available):
        raise UsageError(
            "this machine cannot run these kernels",
            where="isa",
            expected=" | ".join(["auto", *available]),
            got=name,
        )
    return available[-1] if name == "auto" else name


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


def read_facts(pack: PackedModel, family: ModuleType, settings: EngineSettings) -> ModelFacts:
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


def make_plan(pack: PackedModel, family: ModuleType, settings: EngineSettings) -> Plan:
    """Decide sizes; raises MemoryBudgetError with the sum if the floor is above the limit.

    Raises PackError if the pack does not hold what its config describes.
    """
    facts = read_facts(pack, family, settings)

    def budget(chunk: int) -> Budget:
        parts = {
            "resident weights": pack.resident_bytes,
            f"state of {facts.context_length} tokens": facts.state_bytes,
            f"scratch of {chunk}-token chunks": scratch_bytes(facts.config, facts.specs, chunk),
        }
        return _budget(pack, facts.native_experts_per_token, parts, settings)

    chunk, fitting = largest_chunk(PREFILL_CHUNKS, budget)
    return Plan(
        config=facts.config,
        native_experts_per_token=facts.native_experts_per_token,
        context_length=facts.context_length,
        kv_itemsize=facts.kv_itemsize,
        prefill_chunk=chunk,
        threads=settings.threads or default_threads(),
        state_bytes=facts.state_bytes,
        budget=fitting,
    )


def _read_config(pack: PackedModel, family: ModuleType) -> Any:
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


def largest_chunk(chunks: Sequence[int], budget: Callable[[int], Budget]) -> tuple[int, Budget]:
    """The first of the chunks, falling, whose sum fits; what the last one raises if none does."""
    for chunk in chunks[:-1]:
        try:
            return chunk, budget(chunk)
        except MemoryBudgetError:
            continue  # a smaller chunk needs less scratch
    return chunks[-1], budget(chunks[-1])


def _budget(
    pack: PackedModel, num_experts_per_tok: int, parts: dict[str, int], settings: EngineSettings
) -> Budget:
    layout = pack.manifest.experts
    sizes = ExpertSizes(
        slot_bytes=layout.record_bytes,
        total=len(pack.manifest.layers) * layout.num_experts,
        floor=floor_slots(num_experts_per_tok, settings.readers),
    )
    system = read_system_memory()
    ram = settings.ram
    if isinstance(ram, str):
        ram = parse_size(ram, option="--ram", whole=system.physical)
    cache = settings.cache
    wanted = parse_cache(cache, sizes) if isinstance(cache, str) else cache
    parts = {**parts, "interpreter and tokenizer": system.process + _RESERVE}
    return make_budget(memory_limit(system, ram), parts, sizes, wanted)


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


def load_weights(pack: PackedModel, ops: Ops, threads: int) -> Weights:
    """Read the resident part into huge pages -> handles into it, which keep it alive."""
    try:
        arena = _native.Arena(pack.resident_bytes, huge_pages=True, threads=threads)
    except MemoryError as error:
        raise MemoryBudgetError(
            "the system refuses the memory for the resident weights",
            got=f"{pack.resident_bytes} bytes",
        ) from error
    loaded = pack.load_resident(arena.view(0, pack.resident_bytes))
    matrices, vectors = {}, {}
    for name, tensor in loaded.items():
        if isinstance(tensor, LoadedMatrix):
            matrices[name] = ops.matrix(tensor.format, tensor.rows, tensor.cols, tensor.data)
        else:
            vectors[name] = ops.vector(tensor)
    return Weights(matrices, vectors)


def _engine(
    pack: PackedModel, plan: Plan, decoder: Decoder, cache: ExpertCache, ops: Ops
) -> Engine:
    return Engine(
        decoder=decoder,
        experts=StreamedExperts(cache, pack.manifest.experts, ops),
        ops=ops,
        context_length=plan.context_length,
        prefill_chunk=plan.prefill_chunk,
        vocab_size=plan.config.vocab_size,
        kv_dtype=f"f{plan.kv_itemsize}",
    )


def _fixed_figures(pack: PackedModel, plan: Plan, cache: ExpertCache, isa: str) -> dict[str, Any]:
    """The fields of Stats that do not change while the model is open."""
    return {
        "cache_slots": cache.slots,
        "cache_bytes": cache.slots * pack.manifest.experts.record_bytes,
        "resident_bytes": pack.resident_bytes,
        "kv_bytes": plan.state_bytes,
        "num_layers": plan.config.num_hidden_layers,
        "direct_io": not cache.buffered_files,
        "experts_per_token": plan.config.num_experts_per_tok,
        "native_experts_per_token": plan.native_experts_per_token,
        "isa": _known_isa(isa),
        "threads": plan.threads,
    }
