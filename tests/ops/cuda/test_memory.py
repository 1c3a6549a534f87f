"""Memory of a card, as far as it can be had without one."""

from __future__ import annotations

import pytest

from flashmoe.errors import MemoryBudgetError

torch = pytest.importorskip("torch")


def test_torch_running_out_is_a_memory_budget_error() -> None:
    from flashmoe.ops.cuda.memory import within_limit

    with (
        pytest.raises(MemoryBudgetError, match=r"--vram: no room on the card for a prompt"),
        within_limit("a prompt"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_weights_lie_one_after_the_other() -> None:
    from flashmoe.ops.cuda.memory import WeightArena

    given = [torch.arange(n, dtype=torch.float32).view(1, n) for n in (3, 64, 65)]
    nbytes = sum(tensor.nbytes for tensor in given)
    arena = WeightArena(WeightArena.room(nbytes, len(given)), torch.device("cpu"))
    kept = [arena.copy(tensor) for tensor in given]
    for tensor, copy in zip(given, kept, strict=True):
        assert torch.equal(copy, tensor)
    starts = [copy.data_ptr() - kept[0].data_ptr() for copy in kept]
    assert starts == [0, WeightArena.ALIGN, 2 * WeightArena.ALIGN]


def test_a_full_arena_takes_no_more() -> None:
    from flashmoe.ops.cuda.memory import WeightArena

    arena = WeightArena(WeightArena.room(4, 1), torch.device("cpu"))
    arena.copy(torch.zeros(1))
    with pytest.raises(RuntimeError):
        arena.copy(torch.zeros(2))
