"""The routed experts of a layer on the device: records in slots of one arena, computed in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton

from flashmoe.ops.base import ExpertShape
from flashmoe.ops.card_sizes import workspace_bytes as workspace_bytes
from flashmoe.ops.cuda import products
from flashmoe.ops.cuda.handles import DeviceMatrix, Normed
from flashmoe.ops.cuda.kernels import experts as kernels
from flashmoe.ops.cuda.kernels import rows as row_kernels
from flashmoe.quant import Format

# Units of all the experts of a token that a program of the down projection takes at a time.
DOWN_TILE = {"UNITS": 1024, "num_warps": 8}


@dataclass(frozen=True)
class ExpertArena:
    """Slots of expert records in device memory. words: int32, `record_bytes` per slot.

    workspace: uint8 [workspace_bytes], where dequantised weights lie. It is taken once: a
    block of that size that torch had handed out in pieces meanwhile could not be had again.
    """

    words: torch.Tensor
    record_bytes: int
    shape: ExpertShape
    workspace: torch.Tensor

    @property
    def bias_words(self) -> int:
        """Where the biases of gate and up begin in a record, in words; 0: there are none."""
        return self.shape.bias_offset // 4

    @property
    def clamped(self) -> bool:
        """Which activation it is."""
        return self.shape.activation == "swiglu_clamped"

    def biases(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Of gate and up [E, 2 I], of down [E, H], copied from slots int32 [E] (-1: anything)."""
        if not self.bias_words:
            return None, None
        inner = 2 * self.shape.intermediate_size
        records = self.words.view(torch.float32).view(-1, self.record_bytes // 4)
        rows = records[slots.clamp(min=0).long(), self.bias_words :]
        return rows[:, :inner], rows[:, inner : inner + self.shape.hidden_size]


class RoutedProducts:
    """The kernels of routed experts. Results do not depend on which slot an expert is in."""

    def __init__(self, device: torch.device) -> None:
        # Guesses of what the next layer will want are made on a stream of their own.
        self._ahead = torch.cuda.Stream() if device.type == "cuda" else None
        self._zero = torch.zeros(products.FEW_TOKENS, dtype=torch.int32, device=device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Device work inside runs beside what follows, after what came before, up to `rejoin`."""
        if self._ahead is None:
            yield
            return
        self._ahead.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._ahead):
            yield

    def rejoin(self) -> None:
        """Device work from now on comes after what was done aside."""
        if self._ahead is not None:
            torch.cuda.current_stream().wait_stream(self._ahead)

    def add(
        self,
        x: torch.Tensor | Normed,
        ids: torch.Tensor,
        weights: torch.Tensor,
        arena: ExpertArena,
        slots: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """out [T, H] += sum over k of weights[t, k] * expert ids[t, k] (x[t]).

        slots int32 [E]: where each expert of the layer is; those of experts not named are not read.
        """
        if len(ids) <= products.FEW_TOKENS:
            hidden = self.few_hidden(x, ids, arena, slots)
            self.few_down(hidden, ids, weights, arena, slots, out)
            return
        assert isinstance(x, torch.Tensor)
        call = ManyTokens(x, ids, arena, len(slots))
        call.run(slots)
        call.finish(weights, out)

    def few_hidden(
        self,
        x: torch.Tensor | Normed,
        ids: torch.Tensor,
        arena: ExpertArena,
        slots: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """silu(gate) * up of every pair whose expert has a slot -> [T * K, I] or codes, in `hidden`
        if any.

        Experts with slot -1 are left out.
        """
        shape = arena.shape
        if hidden is None:
            inner = shape.intermediate_size
            hidden = products.empty_input(ids.numel(), inner, shape.down, ids.device)
        _hidden(
            x, ids, arena.words, slots, hidden, shape.gate_up, arena.record_bytes // 4,
            clamped=arena.clamped, bias_words=arena.bias_words,
        )  # fmt: skip
        return hidden

    def few_hidden_of(
        self, x: torch.Tensor | Normed, gate_up: DeviceMatrix, down: DeviceMatrix
    ) -> torch.Tensor:
        """The same of one matrix that every token uses -> [T, I] or codes, as `down` takes it."""
        hidden = products.empty_input(len(x), down.cols, down.format, down.data.device)
        ids = self._zero[: len(x), None]
        _hidden(x, ids, gate_up.data, self._zero, hidden, gate_up.format, 0)
        return hidden

    def few_down(
        self,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        arena: ExpertArena,
        slots: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """out [T, H] += the weighted down projections of what few_hidden has made."""
        shape = arena.shape
        kernels.experts_down[(triton.cdiv(shape.hidden_size, 8), len(ids))](
            hidden, weights, arena.words, ids, slots, out,
            TOPK=ids.shape[1], HIDDEN=shape.hidden_size, INTERMEDIATE=shape.intermediate_size,
            RECORD_WORDS=arena.record_bytes // 4, DOWN_WORDS=shape.down_offset // 4,
            FORMAT=shape.down.name, GROUP=shape.down.group, **DOWN_TILE,
            BIAS_WORDS=arena.bias_words and arena.bias_words + 2 * shape.intermediate_size,
            EMULATED=out.device.type == "cpu",
        )  # fmt: skip


class ManyTokens:
    """The routed experts of one layer for many tokens, in one piece or expert by expert.

    x [T, H], ids [T, K]. Every result has a row of its own until `finish` sums them in routing
    order: the pieces and their order do not matter.
    """

    def __init__(
        self, x: torch.Tensor, ids: torch.Tensor, arena: ExpertArena, num_experts: int
    ) -> None:
        shape = arena.shape
        self._arena, self._topk, self._experts = arena, ids.shape[1], num_experts
        self._tiles = products.Tiles.of(ids, num_experts)
        self._planes = products.split(x, shape.gate_up)
        self._hidden = _empty(ids.device, ids.numel(), shape.intermediate_size)
        self._rows = _empty(ids.device, ids.numel(), shape.hidden_size)

    def run(self, slots: torch.Tensor) -> None:
        """The experts that have a slot; slots int32 [E], -1: not this time."""
        tiles = self._tiles.only(slots >= 0)
        first_bias, second_bias = self._arena.biases(slots)
        gate_up, down = _sources(self._arena, slots, tiles.counts)
        workspace = self._arena.workspace
        for first, count in self._pieces(gate_up):
            w = products.dequantize(gate_up, first, count, pairs=True, workspace=workspace)
            products.hidden_rows(
                self._planes, w, self._hidden, tiles, topk=self._topk, grouped=True, first=first,
                clamped=self._arena.clamped, bias=first_bias,
            )  # fmt: skip
        planes = products.split(self._hidden, self._arena.shape.down)
        for first, count in self._pieces(down):
            w = products.dequantize(down, first, count, pairs=False, workspace=workspace)
            products.grouped_rows(
                planes, w, self._arena.shape.hidden_size, self._rows, tiles, first, second_bias
            )

    def finish(self, weights: torch.Tensor, out: torch.Tensor) -> None:
        """out [T, H] += the weighted rows."""
        hidden_size = out.shape[1]
        row_kernels.combine[(len(out), triton.cdiv(hidden_size, 1024))](
            self._rows, weights, out, COLS=hidden_size, TOPK=self._topk, BLOCK=1024
        )

    def _pieces(self, source: products.Source) -> list[tuple[int, int]]:
        """(first, count) of the experts whose dequantised weights fit the workspace at a time."""
        size, experts = self._arena.workspace.nbytes // source.dequantized_bytes, self._experts
        return [(first, min(size, experts - first)) for first in range(0, experts, size)]


def _hidden(
    x: torch.Tensor | Normed, ids: torch.Tensor, words: torch.Tensor, slots: torch.Tensor,
    hidden: torch.Tensor, fmt: Format, record_words: int, *, clamped: bool = False,
    bias_words: int = 0,
) -> None:  # fmt: skip
    values, norm, eps, kind = products.input_of(x, fmt)
    cols = (x.x if isinstance(x, Normed) else x).shape[1]
    codes = hidden.dtype == torch.int32
    inner = hidden.shape[-1] * (8 if codes else 1)
    kernels.experts_hidden[(inner // 8, ids.numel())](
        values, norm, eps, words, ids, slots, hidden,
        TOPK=ids.shape[1], COLS=cols, INTERMEDIATE=inner, RECORD_WORDS=record_words,
        FORMAT=fmt.name, GROUP=fmt.group, **kind, CODES=codes,
        CLAMPED=clamped, BIAS_WORDS=bias_words,
        EMULATED=hidden.device.type == "cpu",
        **products.unit_tile(fmt, cols),
    )  # fmt: skip


def _sources(
    arena: ExpertArena, slots: torch.Tensor, counts: torch.Tensor
) -> tuple[products.Source, products.Source]:
    shape, words = arena.shape, arena.record_bytes // 4
    hidden, inner = shape.hidden_size, shape.intermediate_size
    return (
        products.Source(arena.words, shape.gate_up, 2 * inner, hidden, 0, words, slots, counts),
        products.Source(
            arena.words, shape.down, hidden, inner, shape.down_offset // 4, words, slots, counts
        ),
    )


def _empty(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)
