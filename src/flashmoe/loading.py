"""From a packed model and settings to a running engine: sizes first, then memory, then weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from flashmoe import _native
from flashmoe.errors import MemoryBudgetError, UsageError
from flashmoe.experts.arena import take_arena
from flashmoe.experts.cache import ExpertCache, open_cache
from flashmoe.experts.governor import Governor
from flashmoe.experts.keeper import MemoryKeeper
from flashmoe.experts.memory import locked_limit
from flashmoe.experts.policy import HALF_LIFE_TOKENS, Lfru, Policy
from flashmoe.experts.room import CacheSize
from flashmoe.experts.sensors import MemorySensors
from flashmoe.experts.source import Reader
from flashmoe.experts.staging import staging_slots
from flashmoe.experts.stats import CacheStats
from flashmoe.experts.streamed import StreamedExperts
from flashmoe.experts.tracing import RunFacts, TraceRecorder, start_trace
from flashmoe.experts.tuner import CacheTuner
from flashmoe.generate.costs import Costs
from flashmoe.generate.engine import Engine, StepMemory
from flashmoe.layers.embedding import StoredEmbedding
from flashmoe.models.decoder import Decoder, Weights
from flashmoe.models.registry import load_family
from flashmoe.ops.base import Ops
from flashmoe.ops.cpu import CpuOps
from flashmoe.planning import EMBEDDING, Plan, make_plan
from flashmoe.settings import EngineSettings
from flashmoe.sizes import format_size
from flashmoe.store.model import RowBlocks, StoredModel, open_model
from flashmoe.store.packed import LoadedMatrix
from flashmoe.store.rows import PIECE_BLOCKS
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.stop_tokens import stop_ids
from flashmoe.text.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"


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


class ExpertStore(Protocol):
    """Where a model's experts are kept: an ExpertCache, or the tiers of a card."""

    @property
    def stats(self) -> CacheStats: ...
    @property
    def slots(self) -> int: ...
    @property
    def staging(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def reader_stats(self) -> Mapping[str, float]: ...
    def close(self) -> None: ...


class Keeper(StepMemory, Protocol):
    """Who keeps the memory of passes, and counts what it did for them."""

    @property
    def resizes(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class LoadedModel:
    """Everything that one open model owns.

    parallel: sequences that memory was counted for. prefix_bytes: what was counted for kept
    prefixes. results: what decides, beside the tokens, every bit of a sequence's state. trace: what
    records its routing, if that was asked for.
    """

    path: Path
    family: str
    config: Any
    engine: Engine
    cache: ExpertStore
    keeper: Keeper
    rows: RowBlocks | None
    text: TextParts | None
    fixed_figures: dict[str, Any]
    parallel: int = 1
    prefix_bytes: int = 0
    results: tuple[object, ...] = ()
    trace: TraceRecorder | None = None

    def counters(self) -> dict[str, Any]:
        """The fields of Stats that count since the model was opened."""
        stats, reader = self.cache.stats, self.cache.reader_stats()
        return {
            "cache_hits": stats.hits,
            "cache_misses": stats.misses,
            "bytes_read": stats.bytes_read,
            "prefetched": stats.prefetched,
            "prefetch_wasted": stats.prefetch_wasted,
            "reading_seconds": reader["reading_s"],
            "read_cpu_seconds": reader["cpu_s"],
            "checksum_cpu_seconds": reader["checksum_s"],
            "landing_cpu_seconds": reader["landing_s"],
        }

    def costs(self) -> Costs:
        """Hits, misses and bytes since the model was opened."""
        stats = self.cache.stats
        return Costs(stats.hits, stats.misses, stats.bytes_read)

    def close(self) -> None:
        """Stop the reads, close the files and let the memory go."""
        self.engine.close()
        self.cache.close()
        if self.rows is not None:
            self.rows.close()
        if self.trace is not None:
            self.trace.close()


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
    laps = _Laps()
    pack = open_model(path)
    family = load_family(pack.manifest.family)
    laps.end("manifest and headers")
    text = text_parts(pack)
    laps.end("tokenizer")
    plan = make_plan(pack, family, settings)
    ops = make_ops(plan.threads, _known_isa(settings.isa))
    laps.end("plan")
    with ExitStack() as opened:  # what is closed again if a later step fails
        rows = opened.enter_context(closing(pack.rows(EMBEDDING))) if plan.streamed else None
        weights = _resident_weights(pack, plan, settings, ops, rows, laps)
        cache = opened.enter_context(_open_cache(pack, plan, settings, make_reader))
        pack.check_unchanged()  # the files that the cache reads are those that were planned with
        laps.end("expert cache")
        decoder = _with_rules(family.build(plan.config, weights), settings, cache)
        keeper = _keeper(plan, cache, ops)
        experts = StreamedExperts(cache, pack.manifest.layouts, ops, settings.prefetch)
        engine = _engine(plan, decoder, experts, keeper, ops)
        trace = _trace(pack, plan, settings, cache, engine)
        opened.pop_all()
    return LoadedModel(
        path=path,
        family=pack.manifest.family,
        config=plan.config,
        engine=engine,
        cache=cache,
        keeper=keeper,
        rows=rows,
        text=text,
        fixed_figures=_fixed_figures(pack, plan, settings, cache) | {"open_seconds": laps.seconds},
        parallel=settings.parallel,
        prefix_bytes=plan.prefix_bytes,
        results=_deciding(pack, plan, settings),
        trace=trace,
    )


def _resident_weights(
    pack: StoredModel,
    plan: Plan,
    settings: EngineSettings,
    ops: Ops,
    rows: RowBlocks | None,
    laps: _Laps,
) -> Weights:
    arena = resident_memory(pack, plan.streamed, lock=settings.lock)
    laps.end("resident memory")
    weights = load_weights(pack, ops, arena, rows)
    laps.end("resident weights")
    return weights


def _open_cache(
    pack: StoredModel,
    plan: Plan,
    settings: EngineSettings,
    make_reader: Callable[[int], Reader] | None,
) -> ExpertCache:
    return open_cache(
        pack,
        slots=plan.budget.slots,
        slot_bytes=pack.manifest.experts.record_bytes,
        staging=_staging(pack, plan, settings),
        reader_threads=settings.readers,
        policy=_policy(pack, plan, settings.parallel),
        keep=plan.budget.keep,
        verify=settings.verify,
        make_reader=make_reader,
    )


def _with_rules(decoder: Decoder, settings: EngineSettings, cache: ExpertCache) -> Decoder:
    """The decoder, with the lossy rules of routing that are on."""
    rules = settings.rules
    return decoder.with_rules(rules, cache.in_memory) if rules.changes_layers else decoder


def _trace(
    pack: StoredModel, plan: Plan, settings: EngineSettings, cache: ExpertCache, engine: Engine
) -> TraceRecorder | None:
    """Has the engine record its routing where that is asked for."""
    if settings.trace is None:
        return None
    k, native = plan.config.num_experts_per_tok, plan.native_experts_per_token
    rules = dataclasses.replace(settings.rules, k=k if k < native else None)
    run = RunFacts(native, rules.lossy, settings.parallel)
    routers, clock = engine.decoder.routers(), engine.ops.clock
    trace = start_trace(Path(settings.trace), pack, routers, cache, run, clock)
    engine.decoder, engine.watch = engine.decoder.with_trace(trace.note), trace.watch
    return trace


def text_parts(pack: StoredModel) -> TextParts | None:
    """None if the pack has no tokenizer."""
    return TextParts.load(pack.text_path) if TOKENIZER in pack.manifest.files else None


def _deciding(pack: StoredModel, plan: Plan, settings: EngineSettings) -> tuple[object, ...]:
    """The identity tells which weights; kernels differ by rounding."""
    k, isa = plan.config.num_experts_per_tok, _known_isa(settings.isa)
    rules = settings.rules.without_k().lossy
    return (pack.manifest.family, pack.identity, plan.kv_itemsize, k, isa, rules)


class _Laps:
    """Seconds of wall clock from one end of a part to the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def end(self, part: str) -> None:
        now = perf_counter()
        self.seconds[part], self._last = now - self._last, now


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


def resident_memory(
    pack: StoredModel, streamed: frozenset[str] = frozenset(), lock: bool = False
) -> _native.Arena:
    """Huge pages for the resident weights but the streamed ones, not resident yet.

    lock: they stay in memory from when they are; raises MemoryBudgetError if that is not allowed.
    """
    arena = take_arena(pack.resident_room(streamed), "the resident weights")
    if lock:
        _lock(arena)
    return arena


def load_weights(
    pack: StoredModel, ops: Ops, arena: _native.Arena, rows: RowBlocks | None = None
) -> Weights:
    """Read the resident part into the arena -> handles of a backend, which keep it or a copy.

    rows: the input embedding, if that stays in the file.
    """
    streamed = frozenset[str]() if rows is None else frozenset({EMBEDDING})
    loaded = pack.load_resident(arena.view(0, pack.resident_room(streamed)), streamed)
    matrices, vectors = {}, {}
    for name, tensor in loaded.items():
        if isinstance(tensor, LoadedMatrix):
            matrices[name] = ops.matrix(tensor.format, tensor.rows, tensor.cols, tensor.data)
        else:
            vectors[name] = ops.vector(tensor)
    embedding = None if rows is None else StoredEmbedding(rows, PIECE_BLOCKS)
    return Weights(matrices, vectors, embedding)


def _lock(arena: _native.Arena) -> None:
    try:
        arena.lock()
    except OSError as error:
        allowed = locked_limit()
        raise MemoryBudgetError(
            f"the system refuses to lock the resident weights: {error.strerror}",
            where="--lock",
            expected=f"a limit of at least {format_size(arena.nbytes)} for locked memory",
            got="no limit" if allowed is None else format_size(allowed),
            hint="Raise it for this shell (ulimit -l unlimited) or the service (LimitMEMLOCK="
            "infinity), or run without --lock",
        ) from error


def _keeper(plan: Plan, cache: ExpertCache, ops: Ops) -> MemoryKeeper:
    floor = plan.costs.floor
    size = CacheSize(cache, floor, ops.release_scratch)
    governor = Governor(floor, cache.slots, plan.budget.slot_bytes)
    tuner = CacheTuner(size, governor, MemorySensors()) if plan.adaptive else None
    return MemoryKeeper(plan.costs, size, tuner)


def _staging(pack: StoredModel, plan: Plan, settings: EngineSettings) -> int:
    if settings.prefetch == "off":
        return 0
    manifest, budget = pack.manifest, plan.budget
    total = len(manifest.layers) * manifest.experts.num_experts
    return staging_slots(budget.slots, total, plan.config.num_experts_per_tok, keep=budget.keep)


def _policy(pack: StoredModel, plan: Plan, parallel: int) -> Policy:
    """The best of the replays in docs/experiments/cache-policy.md, for a token of each sequence."""
    uses = len(pack.manifest.layers) * plan.config.num_experts_per_tok * parallel
    return Lfru(HALF_LIFE_TOKENS * uses)


def _engine(
    plan: Plan, decoder: Decoder, experts: StreamedExperts, keeper: MemoryKeeper, ops: Ops
) -> Engine:
    return Engine(
        decoder=decoder,
        experts=experts,
        ops=ops,
        memory=keeper,
        context_length=plan.context_length,
        vocab_size=plan.config.vocab_size,
        kv_dtype=f"f{plan.kv_itemsize}",
    )


def _fixed_figures(
    pack: StoredModel, plan: Plan, settings: EngineSettings, cache: ExpertCache
) -> dict[str, Any]:
    """The fields of Stats that do not change while the model is open."""
    return {
        "cache_budget_slots": plan.budget.slots,
        "resident_bytes": pack.resident_bytes_without(plan.streamed),
        "embedding_on_disk": bool(plan.streamed),
        "kv_bytes": plan.state_bytes,
        "num_layers": plan.config.num_hidden_layers,
        "direct_io": not cache.buffered_files,
        "experts_per_token": plan.config.num_experts_per_tok,
        "native_experts_per_token": plan.native_experts_per_token,
        "isa": _known_isa(settings.isa),
        "threads": plan.threads,
        "routing": settings.rules.without_k().lossy,
    }
