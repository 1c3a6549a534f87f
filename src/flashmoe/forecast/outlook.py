"""The outlook of a model on this machine: a pack, a checkpoint, or a repository of the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flashmoe.bench.probe import probe_disk
from flashmoe.bench.rates import RateMeter, memory_rate
from flashmoe.errors import MemoryBudgetError, UsageError
from flashmoe.forecast.model import Rates, Sizes, first_token_seconds, hit_rate, tokens_per_second
from flashmoe.hub.address import Address, is_repo
from flashmoe.library import Library, find_model
from flashmoe.models.registry import load_family
from flashmoe.ops.devices import driver_present
from flashmoe.ops.threads import default_threads
from flashmoe.planning import EMBEDDING, HEAD, least_memory, make_plan
from flashmoe.settings import DEFAULT_READERS, EngineSettings
from flashmoe.store.format import MANIFEST, Manifest
from flashmoe.store.info import pack_info
from flashmoe.store.model import is_checkpoint
from flashmoe.store.opening import open_checkpoint
from flashmoe.store.pack import Described, plan_pack
from flashmoe.store.packed import PackedModel
from flashmoe.store.plan import PackOptions

Origin = Literal["header", "measured", "estimated"]
Kind = Literal["pack", "checkpoint", "hub"]
PROMPT_TOKENS = 512
SLOW = 3.0
"""Tokens per second under which a model is called slow: about 130 words a minute."""
_GOOD_DISK = 7e9


@dataclass(frozen=True)
class PlannedModel(PackedModel):
    """A pack that is not written yet: its manifest without checksums, its config."""

    raw_config: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.raw_config


@dataclass(frozen=True)
class Figure:
    """A value in bytes, tokens per second or seconds, and where it comes from."""

    name: str
    value: float
    unit: Literal["bytes", "bytes/s", "tok/s", "s", "share"]
    origin: Origin


@dataclass(frozen=True)
class Outlook:
    """verdict: "good", "slow" or "impossible". reason: why. win: the change that helps most."""

    kind: Kind
    family: str
    figures: tuple[Figure, ...]
    verdict: Literal["good", "slow", "impossible"]
    reason: str
    win: str
    gpu: bool


def outlook(given: str, settings: EngineSettings, options: PackOptions) -> Outlook:
    """Reads headers, measures disk and memory for a second each, and works it out.

    Raises UsageError, CheckpointError, PackError, HubError, StorageError.
    """
    kind, pack = _read(given, options)
    family = load_family(pack.manifest.family)
    config = family.read_config(pack.config)
    sizes = _sizes(pack.manifest, config, _active(pack, config, kind))
    floor = least_memory(pack, family, settings)
    figures = [
        Figure("on disk", _disk_bytes(pack.manifest), "bytes", "header"),
        Figure("resident", pack.resident_bytes, "bytes", "header"),
        Figure("experts per token", sizes.per_token, "bytes", "header"),
        Figure("least memory", floor.total, "bytes", "estimated"),
    ]
    try:
        budget = make_plan(pack, family, settings).budget
    except MemoryBudgetError as error:
        reason = f"needs {floor.total / 1e9:.1f} GB of memory: {error.expected}"
        win = "More memory, or a shorter --ctx"
        return Outlook(
            kind, pack.manifest.family, tuple(figures), "impossible", reason, win, _gpu()
        )
    rates = _rates(pack, kind)
    figures += _speeds(sizes, rates, budget.slots)
    speed = next(figure.value for figure in figures if figure.name == "decode")
    verdict: Literal["good", "slow"] = "good" if speed >= SLOW else "slow"
    reason = f"about {speed:.1f} tok/s; {SLOW:.0f} and more is called good"
    win = biggest_win(sizes, rates, budget.slots)
    return Outlook(kind, pack.manifest.family, tuple(figures), verdict, reason, win, _gpu())


def biggest_win(sizes: Sizes, rates: Rates, slots: int) -> str:
    """Which of more memory, a faster disk and faster memory helps most, and by how much."""
    share = slots / sizes.experts
    now = tokens_per_second(sizes, rates, hit_rate(share))
    twice = min(1.0, 2 * share)
    more = (min(2 * slots, sizes.experts) - slots) * sizes.record / 1e9
    choices = {
        f"{more:.0f} GB more memory for experts": tokens_per_second(sizes, rates, hit_rate(twice)),
        "a disk of 7 GB/s": tokens_per_second(
            sizes, replace(rates, disk=max(rates.disk, _GOOD_DISK)), hit_rate(share)
        ),
        "memory of twice the speed": tokens_per_second(
            sizes, replace(rates, memory=2 * rates.memory), hit_rate(share)
        ),
    }
    name, then = max(choices.items(), key=lambda choice: choice[1])
    return f"{name}: {then / now:.1f}x" if then > 1.05 * now else "nothing simple helps much"


def _speeds(sizes: Sizes, rates: Rates, slots: int) -> list[Figure]:
    share = slots / sizes.experts
    first = first_token_seconds(sizes, rates, PROMPT_TOKENS, share)
    expected = tokens_per_second(sizes, rates, hit_rate(share))
    even = tokens_per_second(sizes, rates, share)
    return [
        Figure("expert cache", slots * sizes.record, "bytes", "estimated"),
        Figure("hit rate", hit_rate(share), "share", "estimated"),
        Figure("disk", rates.disk, "bytes/s", "measured"),
        Figure("memory", rates.memory, "bytes/s", "measured"),
        Figure("decode", expected, "tok/s", "estimated"),
        Figure("decode, even routing", even, "tok/s", "estimated"),
        Figure(f"first token of {PROMPT_TOKENS}", first, "s", "estimated"),
    ]


def _read(
    given: str, options: PackOptions
) -> tuple[Literal["pack", "checkpoint", "hub"], PackedModel]:
    path = find_model(given)
    if (path / MANIFEST).exists():
        return "pack", PackedModel.open(path)
    if is_checkpoint(path):
        with open_checkpoint(path) as checkpoint:
            return "checkpoint", _planned(checkpoint, options)
    if not is_repo(given):
        expected = "a pack, a checkpoint, or OWNER/NAME on the hub"
        raise UsageError("no such model", expected=expected, got=repr(given))
    return "hub", _from_hub(Address.parse(given), options)


def _from_hub(address: Address, options: PackOptions) -> PackedModel:
    from flashmoe.hub.repo import Hub

    hub = Hub.from_environment()
    from flashmoe.hub.headers import HubHeaders

    try:
        with tempfile.TemporaryDirectory(prefix="flashmoe-plan-") as folder:
            return _planned(HubHeaders(hub, hub.listing(address), Path(folder)), options)
    finally:
        hub.close()


def _planned(checkpoint: Described, options: PackOptions) -> PackedModel:
    manifest = plan_pack(checkpoint, options).manifest
    return PlannedModel(checkpoint.path, manifest, checkpoint.config)


def _sizes(manifest: Manifest, config: Any, active: int) -> Sizes:
    skipped = {EMBEDDING} if HEAD in manifest.tensors else set[str]()
    touched = [t.stored_bytes for name, t in manifest.tensors.items() if name not in skipped]
    layout = manifest.experts
    return Sizes(
        layers=len(manifest.layers),
        num_experts=layout.num_experts,
        experts_per_token=config.num_experts_per_tok,
        record=manifest.layer_bytes // len(manifest.layers),
        dense=sum(touched),
        active_parameters=active,
    )


def _active(pack: PackedModel, config: Any, kind: str) -> int:
    """Parameters that a token uses; of a pack that is not written, by its bytes."""
    if kind == "pack":
        return pack_info(pack, config.num_experts_per_tok).active_parameters
    sizes = _sizes(pack.manifest, config, 0)
    formats = pack.manifest.dense_format, pack.manifest.experts_format
    dense, experts = (8 * 1024 / one.nbytes(8, 1024) for one in formats)
    return round(sizes.dense * dense + sizes.per_token * experts)


def _disk_bytes(manifest: Manifest) -> int:
    return sum(size for _, size in manifest.data_files().values())


def _rates(pack: PackedModel, kind: str) -> Rates:
    """Measured on the model's own files, or where it would lie."""
    threads, record = default_threads(), pack.manifest.experts.record_bytes
    if kind == "pack":
        files: Sequence[Path] = sorted(set(pack.files))
        disk, memory = RateMeter(files, record, DEFAULT_READERS, threads).measure()
        return Rates(disk, memory, threads)
    root = Library().root
    place = next(path for path in (root, *root.parents) if path.is_dir())
    return Rates(probe_disk(place, record)[1], memory_rate(threads, 0.5), threads)


def _gpu() -> bool:
    return driver_present()
