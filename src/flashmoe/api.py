"""The public surface: load a packed model, generate, score. Our own commands use only this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flashmoe.demo import demo_model_path
from flashmoe.errors import PackError, UsageError
from flashmoe.experts.memory import peak_resident
from flashmoe.experts.recorded import OnExperts, RecordedExperts
from flashmoe.generate.engine import Engine, PhaseTimes, Prefixes, Session
from flashmoe.generate.loop import Piece, Progress
from flashmoe.generate.loop import generate as run_loop
from flashmoe.generate.prefix import PrefixCache, root_of
from flashmoe.generate.prefix_files import PrefixFiles
from flashmoe.generate.prompt import prompt_ids
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.generate.scheduler import Scheduler
from flashmoe.library import find_model
from flashmoe.loading import TOKENIZER, LoadedModel, TextParts, load_model
from flashmoe.ops.devices import DeviceName, pick_device, settle_device
from flashmoe.planning import card_lacks
from flashmoe.settings import EngineSettings, environment
from flashmoe.stats import Stats
from flashmoe.store.model import open_model
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.messages import Message
from flashmoe.text.tokenizer import Tokenizer

# The demo model fits into any memory; with less it shows what flashmoe is for.
DEMO_CACHE = "25%"


def load(path: str | Path | None = None, **settings: Any) -> Model:
    """Open a packed model, or a checkpoint in place; no path: the demo model of the package.

    Args:
        path: directory that `flashmoe pack` wrote, or of a checkpoint (docs/inplace.md says which),
            or the name of a pulled model.
        settings: fields of flashmoe.settings.EngineSettings: ram, cache, threads,
            context_length, experts_per_token, isa, verify, prefetch, lock, device, vram,
            hybrid, parallel, prefix_ram, routing, trace. What is not given comes from the
            environment (FLASHMOE_RAM, ...), else is chosen for the machine.

    Raises UsageError (an option), PackError or ChecksumError (a damaged pack), MemoryBudgetError
    (the limit is below the floor; the message shows the sum), StorageError (the system),
    CheckpointError (a checkpoint that is damaged, or that must be packed to run).
    """
    unknown = settings.keys() - EngineSettings.__dataclass_fields__.keys()
    if unknown:
        raise UsageError(
            "unknown setting",
            where="load",
            expected=", ".join(EngineSettings.__dataclass_fields__),
            got=", ".join(sorted(unknown)),
        )
    given = {name: value for name, value in settings.items() if value is not None}
    defaults = environment() if path is not None else {"cache": DEMO_CACHE, **environment()}
    chosen = EngineSettings(**{**defaults, **given})
    return Model(_open(find_model(path) if path is not None else demo_model_path(), chosen))


def device_for(path: str | Path | None, wanted: str = "auto") -> tuple[DeviceName, str]:
    """Where `load` would run a model, "cpu" or "cuda", and why. path: as for `load`.

    wanted: auto, cpu or cuda. Raises UsageError for another name, or where cuda cannot be had.
    """
    return _settled(find_model(path) if path is not None else demo_model_path(), wanted)


def _settled(path: Path, wanted: str) -> tuple[DeviceName, str]:
    device, reason = pick_device(wanted)
    if device == "cpu":
        return device, reason
    return settle_device(reason, wanted, card_lacks(open_model(path).manifest))


def _open(path: Path, settings: EngineSettings) -> LoadedModel:
    device, reason = _settled(path, settings.device)
    loaded = (
        _open_on_host(path, settings, reason) if device == "cpu" else _open_card(path, settings)
    )
    hybrid = loaded.fixed_figures.get("hybrid")
    loaded.fixed_figures["device_reason"] = f"{reason}; {hybrid}" if hybrid else reason
    loaded.engine.lossy = Stats(**loaded.fixed_figures).lossy
    return loaded


def _open_on_host(path: Path, settings: EngineSettings, reason: str) -> LoadedModel:
    if settings.hybrid:
        raise UsageError(
            "there is no card to share experts with",
            where="hybrid",
            got=f"device cpu ({reason})",
            hint="Leave it out",
        )
    return load_model(path, settings)


def _open_card(path: Path, settings: EngineSettings) -> LoadedModel:
    refusals = {
        "routing": settings.rules.changes_layers and "a card has no such rules",
        "trace": settings.trace is not None and "a card records no routing",
        "parallel": settings.parallel > 1 and "a card runs one sequence at a time",
        "prefix_ram": settings.prefix_ram and "a card keeps no prefixes",
    }
    for setting, what in refusals.items():
        if what:
            raise UsageError(what, where=setting, hint="Use --device cpu, or leave it out")
    # torch comes in here, and only here.
    from flashmoe.cuda import load_on_card

    return load_on_card(path, settings)


class Model:
    """A loaded model. Use it in a `with`, or call `close`; one thread at a time.

    Several models can be open; each has its own threads, memory and statistics.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._engine: Engine | None = loaded.engine
        self._first_token_seconds = 0.0
        self._counted = loaded.counters()

    # What the model is.

    @property
    def path(self) -> Path:
        """The directory or GGUF file it was loaded from."""
        return self._loaded.path

    @property
    def family(self) -> str:
        """Name of the family, e.g. "qwen3_moe"."""
        return self._loaded.family

    @property
    def config(self) -> Any:
        """The family's Config: hidden_size, num_hidden_layers and so on, as in the checkpoint."""
        return self._loaded.config

    @property
    def fingerprint(self) -> str:
        """What decides, beside the tokens, every bit of a result: weights, K, routing, kernels."""
        return sha256(repr(self._loaded.results).encode()).hexdigest()

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._loaded.engine.context_length

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        return self._text().tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """Messages to text."""
        return self._text().chat_template

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return self._text().stop_ids

    # What it does.

    def session(self) -> Session:
        """A new empty sequence: feed it token ids, get logits; feed it again to go on."""
        return Session(self._open())

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        on_progress: Progress | None = None,
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Answer a prompt, token by token.

        Args:
            prompt: text taken as it stands (no chat template), or token ids.
            messages: instead of a prompt: a chat, rendered by the model's template with `tools`.
            enable_thinking: passed to the template where given.
            on_progress: called with (prompt tokens done, prompt tokens) during prefill.
            sampling: fields of flashmoe.generate.sampling.SamplingOptions: max_tokens,
                temperature, top_p, top_k, min_p, repeat_penalty, seed, stop.

        Yields Piece(text, token_id, logprob, finish_reason). Raises UsageError (an option, an
        empty prompt), ContextLengthError (the prompt does not fit) before any work; while
        iterating StorageError, ChecksumError or NumericError.
        """
        start = perf_counter()
        engine = self._open()
        options = _sampling_options(sampling)
        ids = prompt_ids(
            self.tokenizer,
            self.chat_template,
            prompt,
            messages=messages,
            tools=tools,
            enable_thinking=enable_thinking,
        )
        pieces = run_loop(
            Session(engine),
            ids,
            options,
            self.tokenizer,
            self.stop_ids,
            on_progress,
            chunk=engine.memory.chunk(max(1, len(ids))),
            phase=engine.between_steps,
        )
        self._start_figures()
        return self._timed(pieces, start)

    @property
    def parallel(self) -> int:
        """Sequences that may run at once (a setting)."""
        return self._loaded.parallel

    def scheduler(
        self, prefixes: Prefixes | None = None, tokenizer: Tokenizer | None = None
    ) -> Scheduler:
        """Runs up to `parallel` sequences at once; instead of sessions, and in one thread.

        prefixes: where beginnings of sequences are kept (`prefix_cache`). tokenizer: what makes
        text of the tokens, where not the model's own.
        """
        engine, loaded, text = self._open(), self._loaded, tokenizer or self.tokenizer
        return Scheduler(engine, text, loaded.costs, loaded.parallel, prefixes)

    def prefix_cache(self, directory: Path | None = None, disk_bytes: int = 8 << 30) -> PrefixCache:
        """For `scheduler`: beginnings of sequences, in the RAM that `prefix_ram` set aside.

        directory: where they are kept as well, at most disk_bytes of them, for the next start.
        Raises MemoryBudgetError where prefix_ram is too small for a single block of 64 tokens,
        StorageError for a directory that cannot be used.
        """
        engine, loaded = self._open(), self._loaded
        root = root_of(loaded.results)
        files = None if directory is None else PrefixFiles(directory, root, disk_bytes)
        return PrefixCache(root, engine.new_state(), loaded.prefix_bytes, files)

    def logits(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Token ids [T] -> logits float32 [T, vocab_size]: row t follows ids[0..t].

        Raises UsageError for no ids or an id outside the vocabulary, ContextLengthError for more
        than context_length.
        """
        self._start_figures()
        return self.session().feed_all(list(ids))

    @contextmanager
    def watch_experts(self, on_experts: OnExperts) -> Iterator[None]:
        """While the body runs, hear of what each layer's routed experts are given.

        on_experts: called with layer, ids [T, K], x [T, H] and weights [T, K] before they compute.
        """
        engine = self._open()
        inner = engine.experts
        engine.experts = RecordedExperts(inner, on_experts)
        try:
            yield
        finally:
            engine.experts = inner

    def restart_stats(self) -> None:
        """Figures of `stats` count from now on: for work through a session."""
        self._start_figures()

    @property
    def stats(self) -> Stats:
        """Figures of the latest generate or logits call, or since restart_stats, up to now."""
        engine, loaded = self._loaded.engine, self._loaded
        counters = {k: v - self._counted[k] for k, v in loaded.counters().items()}
        return Stats(
            prompt_tokens=engine.prefill.tokens,
            decode_tokens=engine.decode.tokens,
            prefill_seconds=engine.prefill.seconds,
            decode_seconds=engine.decode.seconds,
            time_to_first_token=self._first_token_seconds,
            phase_seconds=dict(engine.decode.phases),
            prefill_phase_seconds=dict(engine.prefill.phases),
            peak_rss=peak_resident(),
            **counters,
            cache_slots=loaded.cache.slots + loaded.cache.staging,
            cache_bytes=loaded.cache.nbytes,
            cache_resizes=loaded.keeper.resizes,
            **loaded.fixed_figures,
        )

    # Its life.

    def close(self) -> None:
        """Give back memory, threads and files. A closed model refuses to work."""
        if self._engine is not None:
            self._engine = None
            self._loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _text(self) -> TextParts:
        if self._loaded.text is None:
            raise PackError(
                "the pack has no tokenizer",
                where=self.path / TOKENIZER,
                hint="Its checkpoint had none. Token ids still work: model.session().feed(ids).",
            )
        return self._loaded.text

    def _open(self) -> Engine:
        if self._engine is None:
            raise UsageError("the model is closed", where=self.path)
        return self._engine

    def _start_figures(self) -> None:
        engine = self._open()
        engine.prefill, engine.decode = PhaseTimes(), PhaseTimes()
        self._first_token_seconds = 0.0
        self._counted = self._loaded.counters()

    def _timed(self, pieces: Iterator[Piece], start: float) -> Iterator[Piece]:
        for piece in pieces:
            if not self._first_token_seconds:
                self._first_token_seconds = perf_counter() - start
            yield piece


def _sampling_options(given: Mapping[str, Any]) -> SamplingOptions:
    unknown = given.keys() - SamplingOptions.__dataclass_fields__.keys()
    if unknown:
        raise UsageError(
            "unknown sampling option",
            where="generate",
            expected=", ".join(SamplingOptions.__dataclass_fields__),
            got=", ".join(sorted(unknown)),
        )
    return SamplingOptions(**given)
