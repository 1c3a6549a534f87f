"""Plans for expert slots in device memory above those in RAM. Pure: experts/device.py acts.

The same planner and policy decide over both tiers (plan.py, policy.py): an expert that is not on
the card is a load there, and a hit or a load of the cache in RAM below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flashmoe.errors import MemoryBudgetError
from flashmoe.experts.budget import Budget, ExpertSizes
from flashmoe.experts.memory import Limit
from flashmoe.experts.plan import plan
from flashmoe.experts.policy import Key, Lru
from flashmoe.experts.residency import Residency
from flashmoe.sizes import format_size


@dataclass
class TierStats:
    """Counts since the model was opened. wanted: experts of layers that were asked for.

    idle_bytes: the part of copied_bytes that were guesses nobody asked for. on_host: experts that
    the CPU computed out of RAM, of ram_hits.
    """

    wanted: int = 0
    device_hits: int = 0
    ram_hits: int = 0
    copied_bytes: int = 0
    idle_bytes: int = 0
    on_host: int = 0

    @property
    def disk_misses(self) -> int:
        """Wanted experts that were on disk only."""
        return self.wanted - self.device_hits - self.ram_hits


@dataclass(frozen=True)
class Placement:
    """Where the wanted experts of one layer go: expert -> slot. loads: those to be copied there.

    host: experts without a slot, which the CPU computes out of RAM.
    """

    slots: Mapping[int, int]
    loads: Mapping[int, int]
    host: tuple[int, ...] = ()

    @property
    def hits(self) -> dict[int, int]:
        """Those that are there already."""
        return {expert: slot for expert, slot in self.slots.items() if expert not in self.loads}


@dataclass
class DeviceSlots:
    """Slots of one arena in device memory, least recently used out first."""

    count: int
    residency: Residency = field(init=False)

    def __post_init__(self) -> None:
        self.residency = Residency(self.count, Lru())

    def place(self, layer: int, experts: Sequence[int]) -> Placement:
        """Give every expert a slot, at most `count` of them; what is evicted is gone at once.

        The work of earlier layers must have ended where the loads go. Call `landed` afterwards.
        """
        assert len(experts) <= self.count
        wanted = [(layer, expert) for expert in experts]
        decided = plan(wanted, self.residency)
        loads = {load.key[1]: load.slot for load in decided.loads}
        slots = {hit.key[1]: hit.slot for hit in decided.hits}
        for load in decided.loads:
            assert load.after is None
            self.residency.start(load)
        return Placement({**slots, **loads}, loads)

    def landed(self, layer: int, placement: Placement) -> None:
        """The loads are there (or will be before anything reads them), the experts are used."""
        for slot in placement.loads.values():
            self.residency.landed(slot)
        self.residency.used((layer, expert) for expert in sorted(placement.slots))

    def abandon(self, placement: Placement) -> None:
        """The loads failed: their slots are empty."""
        for slot in placement.loads.values():
            self.residency.drop(slot)

    def vacate(self, count: int) -> None:
        """Empty the first `count` slots, which are about to be used for something else."""
        keys = [key for key in self.residency.resident() if self._slot(key) < count]
        for key in sorted(keys):
            self.residency.drop(self._slot(key))

    def _slot(self, key: Key) -> int:
        slot = self.residency.slot_of(key)
        assert slot is not None
        return slot


@dataclass(frozen=True)
class HostRates:
    """Measured seconds: to copy an expert to the card; to compute one out of RAM; what a call of
    the CPU takes beside its experts."""

    copy: float
    compute: float
    call: float

    def on_host(self, count: int) -> int:
        """Of `count` experts in RAM, how many the CPU takes so that it and the bus together are
        done soonest; the fewest where several are as good."""

        return min(range(count + 1), key=lambda share: self._seconds(count, share))

    def saves(self, count: int) -> float:
        """Seconds by which the CPU's share of `count` experts makes them sooner done."""
        return self._seconds(count, 0) - self._seconds(count, self.on_host(count))

    def _seconds(self, count: int, share: int) -> float:
        call = self.call if share else 0.0
        return max((count - share) * self.copy, call + share * self.compute)


def waves(experts: Sequence[int], resident: frozenset[int], slots: int) -> Iterator[Sequence[int]]:
    """The experts of a layer in groups that fit the slots: those that are resident come first."""
    ordered = sorted(experts, key=lambda expert: (expert not in resident, expert))
    for begin in range(0, len(ordered), slots):
        yield ordered[begin : begin + slots]


def device_budget(limit: Limit, parts: Mapping[str, int], sizes: ExpertSizes) -> Budget:
    """How many slots fit beside the parts under the limit, up to every expert.

    Raises MemoryBudgetError, which shows the sum, if one token's experts do not fit.
    """
    left = limit.nbytes - sum(parts.values())
    slots = max(sizes.floor_slots, min(left // sizes.slot_bytes, sizes.total))
    budget = Budget(limit, dict(parts), sizes.slot_bytes, slots, keep=True)
    if budget.total > limit.nbytes:
        raise MemoryBudgetError(
            "the model does not fit the card",
            expected=f"at most {format_size(limit.nbytes)} ({limit.origin})",
            got=format_size(budget.total),
            hint=f"The sum:\n{budget.table()}\nRaise --vram, shorten the context, or --device cpu",
        )
    return budget
