"""The outlook of a model on this machine: a pack, a checkpoint, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashmoe.bench.traces import Trace
from flashmoe.errors import MemoryBudgetError
from flashmoe.forecast.device import Choice, card_limit, choose, place
from flashmoe.forecast.figures import SLOW, Comparison, Figure, Outlook, Speed
from flashmoe.forecast.hits import Hits, expected_hits
from flashmoe.forecast.model import Sizes
from flashmoe.forecast.on_card import card_speed, known_card
from flashmoe.forecast.on_host import host_speed, in_place_speed
from flashmoe.forecast.rates import MachineRates, machine_rates
from flashmoe.forecast.sizes import active_parameters, disk_bytes, sizes_of
from flashmoe.forecast.source import Candidate, read_candidate
from flashmoe.models.registry import load_family
from flashmoe.ops.devices import Gpu, find_gpus
from flashmoe.planning import least_memory, make_plan
from flashmoe.settings import EngineSettings
from flashmoe.store.plan import PackOptions


@dataclass(frozen=True)
class Basis:
    """What an outlook starts from.

    rates: as for machine_rates. gpus: those of this machine, None: to be found. card: the name of
    one that is not here and is planned for.
    """

    settings: EngineSettings
    options: PackOptions
    rates: str = "auto"
    trace: Trace | None = None
    gpus: Sequence[Gpu] | None = None
    card: str | None = None

    def cards(self) -> Sequence[Gpu]:
        """What may be planned for: `card`, though it is not here, or those that are."""
        if self.card is not None:
            return (Gpu(self.card, None, "none"),)
        return find_gpus() if self.gpus is None else self.gpus


def outlook(given: str, basis: Basis) -> Outlook:
    """Reads headers, measures what no line is recorded of, and works it out.

    Raises UsageError, CheckpointError, PackError, HubError, StorageError.
    """
    candidate = read_candidate(given, basis.options)
    choice = choose(candidate.pack, basis.settings, basis.cards())
    config = load_family(candidate.pack.manifest.family).read_config(candidate.pack.config)
    active = active_parameters(candidate.pack, config, candidate.kind == "pack")
    sizes = sizes_of(candidate.pack.manifest, config, active)
    try:
        speed, comparison = _speed(candidate, basis, choice, sizes)
    except MemoryBudgetError as error:
        return _impossible(candidate, basis, choice, sizes, error)
    good = speed.tokens_per_second >= SLOW
    return Outlook(
        kind=candidate.kind,
        family=candidate.pack.manifest.family,
        device=choice.device,
        device_reason=choice.reason,
        figures=(*_header_figures(candidate, basis, choice, sizes), *speed.figures),
        verdict="good" if good else "slow",
        reason=f"about {speed.tokens_per_second:.1f} tok/s; {SLOW:.0f} and more is called good",
        win=speed.win,
        in_place=comparison,
    )


def _speed(
    candidate: Candidate, basis: Basis, choice: Choice, sizes: Sizes
) -> tuple[Speed, Comparison | None]:
    """Raises MemoryBudgetError before anything is measured."""
    pack, settings = candidate.pack, basis.settings
    share = sizes.experts_per_token / sizes.num_experts
    hits = expected_hits(pack.manifest.source_name, share, basis.trace)
    if choice.card is not None:
        limit = card_limit(choice.card, settings)
        tiers = place(pack, settings, limit)
        machine = machine_rates(pack, candidate.kind == "pack", basis.rates)
        card = known_card(choice.card.name, basis.rates)
        return card_speed(sizes, tiers, card, machine.disk, hits, limit), None
    slots = make_plan(pack, load_family(pack.manifest.family), settings).budget.slots
    machine = machine_rates(pack, candidate.kind == "pack", basis.rates)
    speed = host_speed(sizes, machine, hits, slots)
    return speed, _compared(candidate, settings, machine, hits, speed)


def _compared(
    candidate: Candidate, settings: EngineSettings, machine: MachineRates, hits: Hits, speed: Speed
) -> Comparison | None:
    if candidate.in_place is not None:
        rates, packed = machine.rates, speed.tokens_per_second
        return in_place_speed(candidate.in_place, settings, rates, hits, packed)
    return Comparison(obstacle=candidate.obstacle) if candidate.obstacle else None


def _header_figures(
    candidate: Candidate, basis: Basis, choice: Choice, sizes: Sizes
) -> list[Figure]:
    pack = candidate.pack
    figures = [
        Figure("on disk", disk_bytes(pack.manifest), "bytes", "header"),
        Figure("resident", pack.resident_bytes, "bytes", "header"),
        Figure("experts per token", sizes.per_token, "bytes", "header"),
    ]
    if choice.card is None:
        floor = least_memory(pack, load_family(pack.manifest.family), basis.settings)
        figures.append(Figure("least memory", floor.total, "bytes", "estimated"))
    return figures


def _impossible(
    candidate: Candidate, basis: Basis, choice: Choice, sizes: Sizes, error: MemoryBudgetError
) -> Outlook:
    where = "memory" if choice.card is None else "memory for the card"
    more = "More memory" if choice.card is None else "More --vram and --ram, --device cpu"
    return Outlook(
        kind=candidate.kind,
        family=candidate.pack.manifest.family,
        device=choice.device,
        device_reason=choice.reason,
        figures=tuple(_header_figures(candidate, basis, choice, sizes)),
        verdict="impossible",
        reason=f"needs {error.got} of {where}: {error.expected}",
        win=f"{more}, or a shorter --ctx",
    )
