"""The sum of what a model takes, held against the limit. Pure: system values are passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from flashmoe.errors import MemoryBudgetError, UsageError
from flashmoe.experts.memory import Limit, SystemMemory
from flashmoe.sizes import format_size, parse_size

CacheSize = int | Literal["auto", "all"]
"""Bytes, whatever is left ("auto"), or every expert ("all"). 0: nothing is kept beyond a step."""

_AVAILABLE_SHARE: Final = 0.9  # of what is free now, when the user names no limit


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """What the cache is made of.

    slot_bytes: of one record. total: experts of all layers. floor: slots that one step needs at
    least (num_experts_per_tok and the reads in flight); a floor above total means all of them.
    """

    slot_bytes: int
    total: int
    floor: int

    @property
    def floor_slots(self) -> int:
        return min(self.floor, self.total)


@dataclass(frozen=True, slots=True)
class Budget:
    """A sum that fits. parts: everything but the cache, name to bytes. slots: of the cache.

    keep: False if nothing is to be kept beyond a step (--cache 0).
    """

    limit: Limit
    parts: Mapping[str, int]
    slot_bytes: int
    slots: int
    keep: bool

    @property
    def cache_bytes(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + self.cache_bytes

    def table(self) -> str:
        """The sum, one line per part, then total and limit."""
        cache = f"expert cache ({self.slots} slots of {format_size(self.slot_bytes)})"
        rows = [*self.parts.items(), (cache, self.cache_bytes), ("total", self.total)]
        rows.append((f"limit: {self.limit.origin}", self.limit.nbytes))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {format_size(nbytes):>10}" for name, nbytes in rows)


def memory_limit(system: SystemMemory, ram: int | None = None) -> Limit:
    """The tightest of --ram, the cgroup limit and physical memory.

    Without --ram (None) most of what is available now is a bound too.
    """
    limits = [Limit(system.physical, "physical memory")]
    if system.cgroup is not None:
        limits.append(system.cgroup)
    if ram is None:
        free = int((system.available + system.process) * _AVAILABLE_SHARE)
        limits.append(
            Limit(free, f"{_AVAILABLE_SHARE:.0%} of available memory; set --ram for more")
        )
    else:
        limits.append(Limit(ram, "--ram"))
    return min(limits, key=lambda limit: limit.nbytes)


def swap_warning(system: SystemMemory, budget: Budget) -> str | None:
    """What to say where the system would rather swap than refuse, None where all is well."""
    free = system.available + system.process
    if system.swap == 0 or budget.total <= free:
        return None
    return (
        f"the budget of {format_size(budget.total)} is more than the {format_size(free)} that are "
        "free, and swap is on: what is swapped out is far slower than an expert read anew. Lower "
        "--ram, or keep swap away (swapoff -a; memory.swap.max=0 in a cgroup), or pass --lock"
    )


def parse_cache(text: str, sizes: ExpertSizes) -> CacheSize:
    """The value of --cache: "auto", "all", a size, or a percentage of all experts' bytes."""
    if text == "auto":
        return "auto"
    if text == "all":
        return "all"
    return parse_size(text, option="--cache", whole=sizes.total * sizes.slot_bytes)


def make_budget(
    limit: Limit, parts: Mapping[str, int], sizes: ExpertSizes, cache: CacheSize = "auto"
) -> Budget:
    """Fix the number of slots, or refuse.

    Args:
        limit: of the whole process.
        parts: bytes by name: resident weights, KV cache, scratch, interpreter, ...
        cache: what the user asked for.

    Raises MemoryBudgetError, which shows the sum, if the parts and the smallest cache (or the one
    asked for) exceed the limit; UsageError if the cache asked for is under the floor.
    """
    slots = _slots(limit, parts, sizes, cache)
    budget = Budget(limit, dict(parts), sizes.slot_bytes, slots, keep=cache != 0)
    if budget.total > limit.nbytes:
        raise _over(budget, sizes)
    return budget


def _slots(limit: Limit, parts: Mapping[str, int], sizes: ExpertSizes, cache: CacheSize) -> int:
    if cache == "all":
        return sizes.total
    if cache == "auto":
        left = limit.nbytes - sum(parts.values())
        return max(sizes.floor_slots, min(left // sizes.slot_bytes, sizes.total))
    if cache == 0:
        return sizes.floor_slots
    slots = min(cache // sizes.slot_bytes, sizes.total)
    if slots < sizes.floor_slots:
        raise UsageError(
            "smaller than what one step needs",
            where="--cache",
            expected=f"at least {format_size(sizes.floor_slots * sizes.slot_bytes)}"
            f" ({sizes.floor_slots} experts)",
            got=format_size(cache),
            hint="--cache 0 takes just that and keeps nothing beyond a step",
        )
    return slots


def _over(budget: Budget, sizes: ExpertSizes) -> MemoryBudgetError:
    advice = "That cache is the least that one step needs: raise --ram or shorten the context"
    if budget.slots > sizes.floor_slots:
        advice = "Ask for a smaller --cache, or raise --ram"
    return MemoryBudgetError(
        "the model does not fit the memory limit",
        expected=f"at most {format_size(budget.limit.nbytes)} ({budget.limit.origin})",
        got=format_size(budget.total),
        hint=f"The sum:\n{budget.table()}\n{advice}",
    )
