"""In which order shards are fetched and consumed, so that few are on the disk at once. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.store.plan import Item


@dataclass(frozen=True)
class Batch:
    """Items that are made of the same shards."""

    shards: frozenset[str]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Order:
    """batches: in the order of work. arrivals: shards in the order that this wants them. peak: most
    bytes of shards that are needed at the same time."""

    batches: tuple[Batch, ...]
    arrivals: tuple[str, ...]
    peak: int

    def last_uses(self) -> dict[str, int]:
        """The number of the last batch that reads a shard."""
        return {name: at for at, batch in enumerate(self.batches) for name in batch.shards}


def make_order(items: Sequence[Item], sizes: Mapping[str, int]) -> Order:
    """The order for these items. sizes: bytes of each shard.

    Greedy: what can be done without a new shard first, then what continues shards that are there,
    then what takes the fewest new bytes. A shard is given up when no item is left that reads it.
    """
    left = _by_shards(items)
    waiting = {name: sum(name in shards for shards in left) for name in sizes}
    here: set[str] = set()
    batches: list[Batch] = []
    arrivals: list[str] = []
    peak = 0
    while left:
        shards = min(left, key=lambda one: _cost(one, here, sizes))
        arrivals += sorted(shards - here)
        here |= shards
        peak = max(peak, sum(sizes[name] for name in here))
        batches.append(Batch(shards, tuple(left.pop(shards))))
        for name in shards:
            waiting[name] -= 1
        here = {name for name in here if waiting[name]}
    return Order(tuple(batches), tuple(arrivals), peak)


def _by_shards(items: Sequence[Item]) -> dict[frozenset[str], list[Item]]:
    groups: dict[frozenset[str], list[Item]] = {}
    for item in items:
        groups.setdefault(shards_of(item), []).append(item)
    return groups


def _cost(
    shards: frozenset[str], here: set[str], sizes: Mapping[str, int]
) -> tuple[bool, int, list[str]]:
    new = sum(sizes[name] for name in shards - here)
    return (bool(new) and not shards & here, new, sorted(shards))


def shards_of(item: Item) -> frozenset[str]:
    """Names of the files that an item's bytes come from."""
    return frozenset(tensor.path.name for tensor in _tensors(item.parts))


def _tensors(part: Any) -> Iterator[Tensor]:
    """Every checkpoint tensor that a part of a plan refers to, however deep."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for member in part:
            yield from _tensors(member)
    elif dataclasses.is_dataclass(part):
        for field in dataclasses.fields(part):
            yield from _tensors(getattr(part, field.name))
