"""Decode speed beside what disk and memory would allow, measured in the same run.

Token ids are forced: random but seeded, so that synthetic and real models are measured alike. Each
window is a sequence of its own with other ids. Cold: every window is a new process, the page cache
holds none of the pack, and only the prompt has filled the expert cache. Warm: one model, and a
window beforehand that does not count. The page cache plays no part where the file system grants
O_DIRECT.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flashmoe
from flashmoe.bench.apart import Progress, run_cold
from flashmoe.bench.rates import RateMeter
from flashmoe.bench.record import Start
from flashmoe.bench.stretch import Stretch, middle, random_ids, spread, stretch
from flashmoe.errors import UsageError
from flashmoe.ops.threads import default_threads
from flashmoe.settings import DEFAULT_READERS
from flashmoe.store import format as fmt
from flashmoe.store.model import StoredModel, open_model

if TYPE_CHECKING:
    from flashmoe.api import Model
    from flashmoe.stats import Stats

_EMBEDDING = "embed_tokens"
_HEAD = "lm_head"
# Prompts that fill a cache before a warm start, and their seeds: apart from those of windows.
_FILLING_PROMPTS = 12
_FILLING_SEED = 1 << 20
# Figures of a window whose median over the windows is a figure of the measurement.
_MEDIANS = (
    "hit_rate",
    "bytes_read_per_token",
    "disk_bytes_per_s_while_reading",
    "reading_share",
    "prefetched_share",
    "prefetch_wasted_per_token",
    "cpu_ms_per_gb",
    "checksum_ms_per_gb",
    "landing_ms_per_gb",
    "disk_wait_share",
    "python_share",
    "bound_tokens_per_second",
    "bound_fraction",
)


@dataclass(frozen=True)
class DecodeOptions:
    """tokens: per window. engine: settings of flashmoe.load. rate_seconds: per sample of a rate."""

    tokens: int = 64
    prompt_tokens: int = 16
    repeat: int = 3
    start: Start = "cold"
    seed: int = 0
    rate_seconds: float = 1.0
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tokens", "prompt_tokens", "repeat"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise UsageError("must be at least 1", where=option, got=getattr(self, name))

    def load(self, path: Path) -> Model:
        """The model with the settings of this measurement."""
        own = {"context_length": self.prompt_tokens + self.tokens, "readers": DEFAULT_READERS}
        return flashmoe.load(path, **{**own, **self.engine})


def measure_decode(path: Path, options: DecodeOptions, progress: Progress) -> dict[str, Any]:
    """The figures of `flashmoe bench decode`; see docs/benchmarks.md.

    progress: called with what is being done. Raises what flashmoe.load and the disk raise.
    """
    pack = open_model(path)
    meter = RateMeter(
        files=pack.files,
        record_bytes=pack.manifest.experts.record_bytes,
        readers=DEFAULT_READERS,
        threads=options.engine.get("threads") or default_threads(),
        seconds=options.rate_seconds,
    )
    measured = list(_windows(path, options, meter, progress))
    windows, stats = [window for window, _ in measured], measured[-1][1]
    return _figures(windows, stats, pack, meter)


def _windows(
    path: Path, options: DecodeOptions, meter: RateMeter, progress: Progress
) -> Iterator[tuple[Stretch, Stats]]:
    """Windows, with samples of the rates while no model is open."""
    numbers = range(options.repeat)
    openings = [numbers] if options.start == "warm" else [range(n, n + 1) for n in numbers]
    for opening in openings:
        progress("measuring disk and memory")
        meter.sample()
        if options.start == "warm":
            yield from _windows_of_one_model(path, options, opening, progress)
        else:
            yield from run_cold(path, _windows_of_one_model, (options, opening), progress)
    progress("measuring disk and memory")
    meter.sample()


def _windows_of_one_model(
    path: Path, options: DecodeOptions, numbers: range, progress: Progress
) -> list[tuple[Stretch, Stats]]:
    measured = []
    progress("loading the model")
    with options.load(path) as model:
        if options.start == "warm":
            progress("warming up")
            _warm_up(model, options)
        for number in numbers:
            progress(f"window {number + 1} of {options.repeat}")
            window = run_window(model, options, options.seed + number + 1)
            measured.append((window, model.stats))
    return measured


def _warm_up(model: Model, options: DecodeOptions) -> None:
    """A window, after prompts that fill the cache: until one misses nothing, or a few."""
    vocab_size, seed = model.session().engine.vocab_size, options.seed + _FILLING_SEED
    for number in range(_FILLING_PROMPTS):
        misses = model.stats.cache_misses
        ids = random_ids(vocab_size, options.prompt_tokens + options.tokens, seed + number)
        model.session().feed(ids)
        if model.stats.cache_misses == misses:
            break
    run_window(model, options, options.seed)


def run_window(model: Model, options: DecodeOptions, seed: int) -> Stretch:
    """Feed a new sequence its prompt, then measure token by token, as generation steps."""
    session = model.session()
    count = options.prompt_tokens + options.tokens
    ids = random_ids(session.engine.vocab_size, count, seed)
    session.feed(ids[: options.prompt_tokens])
    with stretch(model, options.tokens) as measured:
        for id in ids[options.prompt_tokens :]:
            session.step(id)
    return measured


def touched_bytes(pack: StoredModel, experts_per_token: int) -> int:
    """Weights that one token reads from memory: all resident ones (of an embedding that is not
    also the head, one row) and its experts. Keys and values are not counted."""
    manifest = pack.manifest
    return _resident_bytes(manifest) + experts_per_token * manifest.layer_bytes


def _resident_bytes(manifest: fmt.Manifest) -> int:
    embedding = manifest.tensors[_EMBEDDING]
    assert isinstance(embedding, fmt.Matrix), "an embedding is a matrix"
    unused = embedding.nbytes * (embedding.rows - 1) // embedding.rows
    return manifest.resident_bytes - (unused if _HEAD in manifest.tensors else 0)


def _figures(
    windows: list[Stretch], stats: Stats, pack: StoredModel, meter: RateMeter
) -> dict[str, Any]:
    touched = touched_bytes(pack, stats.experts_per_token)
    rows = [_window_row(window, touched, meter) for window in windows]
    return {
        "tokens_per_second": spread([window.tokens_per_second for window in windows]),
        **{name: middle(rows, name) for name in _MEDIANS},
        "phase_ms_per_token": _phases(rows),
        "bytes_touched_per_token": touched,
        "rates": meter.rates.row() | {"block_bytes": meter.record_bytes, "depth": meter.readers},
        **_engine_facts(stats, pack),
        "windows": rows,
    }


def _engine_facts(stats: Stats, pack: StoredModel) -> dict[str, Any]:
    """What does not differ between windows."""
    return {
        "cache": {"slots": stats.cache_slots, "bytes": stats.cache_bytes},
        "threads": stats.threads,
        "experts_per_token": stats.experts_per_token,
        "lossy": stats.lossy,
        "layers": len(pack.manifest.layers),
        "expert_files": len(pack.files),
        "direct_io": stats.direct_io,
        "peak_rss": stats.peak_rss,
    }


def _window_row(window: Stretch, touched: int, meter: RateMeter) -> dict[str, Any]:
    row = window.row()
    bound = 1 / meter.rates.seconds(row["bytes_read_per_token"], touched)
    fraction = row["tokens_per_second"] / bound
    return row | {"bound_tokens_per_second": bound, "bound_fraction": fraction}


def _phases(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each phase over the windows."""
    phases = [row["phase_ms_per_token"] for row in rows]
    names = dict.fromkeys(name for found in phases for name in found)
    return {name: middle([{name: 0.0, **found} for found in phases], name) for name in names}
