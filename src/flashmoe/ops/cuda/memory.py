"""Memory of a card and of the host beside it: a hard limit, and pages that do not move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from flashmoe import _native
from flashmoe.errors import MemoryBudgetError, UsageError
from flashmoe.ops.card_sizes import CONTEXT_BYTES as CONTEXT_BYTES
from flashmoe.ops.card_sizes import WEIGHT_ALIGN, weight_bytes


@dataclass(frozen=True)
class CardMemory:
    """Bytes of a card: physically there, and not taken by anyone now (our context is counted)."""

    total: int
    free: int


def open_card() -> torch.device:
    """The first card. Raises UsageError if torch cannot use it."""
    if not torch.cuda.is_available():
        raise UsageError(
            "torch does not see a GPU",
            where="--device",
            hint="Compare the driver with torch's CUDA version, or use --device cpu",
        )
    return torch.device("cuda", torch.cuda.current_device())


def card_memory(device: torch.device) -> CardMemory:
    """What the driver says, other processes included."""
    free, total = torch.cuda.mem_get_info(device)
    return CardMemory(total, free)


def cap_tensors(device: torch.device, nbytes: int) -> None:
    """Let torch's allocator take at most so many bytes of the card: past it, it raises."""
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), device)


@contextmanager
def within_limit(what: str) -> Iterator[None]:
    """Raises MemoryBudgetError where torch finds no memory inside. what: the memory is for."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryBudgetError(
            f"no room on the card for {what}",
            where="--vram",
            hint="Raise --vram, shorten the context, let other sequences go, or --device cpu",
        ) from error


class WeightArena:
    """Weights that stay, one after the other in one tensor of `nbytes`: torch would round each of
    them up to 2 MB."""

    ALIGN = WEIGHT_ALIGN

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._bytes = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._used = 0

    @classmethod
    def room(cls, nbytes: int, tensors: int) -> int:
        """Bytes for so many tensors of `nbytes` altogether."""
        return weight_bytes(nbytes, tensors)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of it behind those before. Raises RuntimeError if the arena is full."""
        begin = self._used
        self._used += -(-tensor.nbytes // self.ALIGN) * self.ALIGN
        place = self._bytes[begin : begin + tensor.nbytes].view(tensor.dtype)
        return place.view(tensor.shape).copy_(tensor)


class PinnedArena:
    """Huge pages that the card may read at full speed: registered once, never moved."""

    def __init__(self, nbytes: int, threads: int, device: torch.device) -> None:
        self._arena = _native.Arena(nbytes, huge_pages=True, threads=threads)
        self._registered = False
        if device.type == "cuda":
            # Not checked by torch's wrapper: an integer error code.
            code = torch.cuda.cudart().cudaHostRegister(self._arena.address, nbytes, 0)
            if int(code) != 0:
                raise MemoryBudgetError(
                    "the system refuses to pin the memory for expert slots",
                    where="--ram",
                    got=f"{nbytes} bytes, CUDA error {int(code)}",
                    hint="Lower --ram or raise the limit of locked memory (ulimit -l)",
                )
            self._registered = True

    @property
    def address(self) -> int:
        """Of the first byte."""
        return int(self._arena.address)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(self._arena.nbytes)

    def bytes(self) -> torch.Tensor:
        """All of it as uint8."""
        return torch.from_numpy(self._arena.view(0, self.nbytes))

    def release(self, offset: int, nbytes: int) -> None:
        """Never called: a cache over pinned pages is not resized."""
        raise AssertionError("pinned pages stay")

    def __del__(self) -> None:
        if getattr(self, "_registered", False):
            torch.cuda.cudart().cudaHostUnregister(self._arena.address)
