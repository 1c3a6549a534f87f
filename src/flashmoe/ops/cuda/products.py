"""Matrix products of the CUDA backend: row by row for a few tokens, on tensor cores for many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from flashmoe.ops.card_sizes import FEW_TOKENS as FEW_TOKENS
from flashmoe.ops.cuda.handles import DeviceMatrix, Normed
from flashmoe.ops.cuda.kernels import dequantize as dequantizing
from flashmoe.ops.cuda.kernels import gemm as gemms
from flashmoe.ops.cuda.kernels import gemv as gemvs
from flashmoe.quant import Format

UNIT_COLS = {"q2": 16, "q3": 16, "q4": 8, "mxfp4": 8, "q8": 4, "bf16": 2}
_MATRICES_PER_LAUNCH = 4
_PAIRS_FROM = 512
_SHARED_TILE = {"BN": 128, "BK": 64}


def next_power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def unit_tile(fmt: Format, cols: int) -> dict[str, int]:
    """How many units of a row a program takes at a time, and with how many warps."""
    units = min(1024, next_power(cols // UNIT_COLS[fmt.name]))
    return {"UNITS": units, "num_warps": min(8, max(1, units // 128))}


def input_of(
    x: torch.Tensor | Normed, fmt: Format
) -> tuple[torch.Tensor, torch.Tensor, float, dict[str, bool]]:
    """x as the kernels take it for weights of a format: values, norm weight (or anything), eps,
    whether to norm and whether the values are codes (int32, see kernels/gemv.py, load_codes)."""
    if isinstance(x, Normed) and x.value is None:
        return x.x, x.weight, x.eps, {"NORM": True, "CODED": False}
    if isinstance(x, Normed):
        assert x.value is not None
        x = x.codes if x.codes is not None and coded(fmt) else x.value
    return x, x, 0.0, {"NORM": False, "CODED": x.dtype == torch.int32}


def coded(fmt: Format) -> bool:
    """Whether weights of a format meet inputs in fixed point."""
    return fmt.name == "q4"


def empty_input(rows: int, cols: int, fmt: Format, device: torch.device) -> torch.Tensor:
    """Memory for rows that weights of a format will meet: float32 [rows, cols], or codes."""
    if coded(fmt):
        return empty_codes(rows, cols, device)
    return torch.empty((rows, cols), dtype=torch.float32, device=device)


def empty_codes(rows: int, cols: int, device: torch.device) -> torch.Tensor:
    """Memory for rows in fixed point (kernels/gemv.py, load_codes)."""
    return torch.empty((rows, 6, cols // 8), dtype=torch.int32, device=device)


def few_rows(
    x: torch.Tensor | Normed,
    matrices: Sequence[DeviceMatrix],
    out: torch.Tensor,
    *,
    add: bool = False,
    row_scale: torch.Tensor | None = None,
) -> None:
    """out [T, all rows] (+)= x @ W.T of up to four matrices of one format, side by side.

    Each matrix begins at a multiple of 8 rows of out.
    """
    first, others = matrices[0], list(matrices[1:])
    values, norm, eps, kind = input_of(x, first.format)
    assert len(matrices) <= _MATRICES_PER_LAUNCH
    blocks = [m.blocks for m in matrices] + [0] * (_MATRICES_PER_LAUNCH - len(matrices))
    offsets = [(m.data.data_ptr() - first.data.data_ptr()) // 4 for m in others]
    offsets += [0] * (_MATRICES_PER_LAUNCH - 1 - len(offsets))
    # Two blocks per program share the reads of x, where there are enough to keep a card busy.
    pair = sum(blocks) * len(values) >= _PAIRS_FROM
    grid = (triton.cdiv(sum(blocks), 2 if pair else 1), len(values))
    gemvs.gemv[grid](
        values, norm, first.data, out, values if row_scale is None else row_scale, eps,
        *blocks, *offsets, out.shape[1],
        COLS=first.cols, FORMAT=first.format.name, GROUP=first.format.group,
        **kind, ADD=add, SCALED=row_scale is not None, PAIR=pair,
        EMULATED=values.device.type == "cpu",
        **unit_tile(first.format, first.cols),
    )  # fmt: skip


@dataclass(frozen=True)
class Planes:
    """x [T, cols] for tensor cores: halves [planes, T, cols], scales [T] of a single plane."""

    halves: torch.Tensor
    scales: torch.Tensor

    @property
    def constants(self) -> dict[str, Any]:
        """Kernel arguments."""
        return {
            "PLANES": len(self.halves),
            "COLS": self.halves.shape[2],
            "EMULATED": self.halves.device.type == "cpu",
        }


def split(x: torch.Tensor, fmt: Format) -> Planes:
    """The planes of x that weights of this format meet."""
    count, kind = (1, torch.float16) if fmt.group else (2, torch.bfloat16)
    halves = torch.empty((count, *x.shape), dtype=kind, device=x.device)
    scales = torch.empty(len(x), dtype=torch.float32, device=x.device)
    cols = x.shape[1]
    gemms.split_rows[(len(x),)](
        x, halves, scales, x.numel(), COLS=cols, PLANES=count, BLOCK=next_power(cols)
    )
    return Planes(halves, scales)


@dataclass(frozen=True)
class Source:
    """Where stored matrices are: one, or one per expert in slots of an arena.

    words: arena or matrix, int32. offset: words from there (or from a record) to the blob.
    slots int32 [E], counts int32 [E] (experts without tokens are not touched).
    """

    words: torch.Tensor
    fmt: Format
    rows: int
    cols: int
    offset: int = 0
    record_words: int = 0
    slots: torch.Tensor | None = None
    counts: torch.Tensor | None = None

    @property
    def padded_rows(self) -> int:
        """Rows of whole blocks."""
        return -(-self.rows // 8) * 8

    @property
    def dequantized_bytes(self) -> int:
        """Of one matrix as halves."""
        return 2 * self.padded_rows * self.cols

    @staticmethod
    def of(matrix: DeviceMatrix) -> Source:
        """A single matrix."""
        return Source(matrix.data, matrix.format, matrix.rows, matrix.cols)


def dequantize(
    source: Source, first: int = 0, count: int = 1, *, pairs: bool,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Matrices first..first + count as halves [count, rows padded to 8, cols].

    pairs: rows that alternate by 8 become two halves. workspace: uint8, where they go; else memory
    of their own.
    """
    fmt, cols = source.fmt, source.cols
    kind = torch.float16 if fmt.group else torch.bfloat16
    padded = source.padded_rows
    shape = (count, padded, cols)
    if workspace is None:
        out = torch.empty(shape, dtype=kind, device=source.words.device)
    else:
        out = workspace[: count * source.dequantized_bytes].view(kind).view(shape)
    units = cols // UNIT_COLS[fmt.name]
    step = min(64, next_power(units))
    grouped = source.slots is not None
    table = source.words if source.slots is None else source.slots
    counts = source.words if source.counts is None else source.counts
    dequantizing.dequantize[(padded // 8, triton.cdiv(units, step), count)](
        source.words, table, counts, out, first, source.offset, source.rows,
        COLS=cols, FORMAT=fmt.name, GROUP=fmt.group, RECORD_WORDS=source.record_words,
        PAIRS=pairs, EXPERTS=grouped, UNITS=step, num_warps=4,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Tiles:
    """Inputs grouped by expert and cut into tiles of `size` positions, computed on the device.

    order int32 [T * K]: the pair at each position. experts, starts int32 [tiles]: of each tile;
    the expert of a tile that is not needed is the number of experts. offsets int32 [E + 2].
    """

    size: int
    order: torch.Tensor
    experts: torch.Tensor
    starts: torch.Tensor
    offsets: torch.Tensor
    counts: torch.Tensor

    @staticmethod
    def of(ids: torch.Tensor, num_experts: int) -> Tiles:
        """From routed ids [T, K]."""
        flat = ids.reshape(-1)
        size = min(128, max(16, next_power(flat.numel() // num_experts)))
        order = torch.argsort(flat, stable=True).to(torch.int32)
        counts = torch.zeros(num_experts, dtype=torch.int32, device=ids.device)
        counts.scatter_add_(0, flat.long(), torch.ones_like(flat))
        offsets = torch.zeros(num_experts + 2, dtype=torch.int32, device=ids.device)
        offsets[1:-1] = torch.cumsum(counts, 0)
        tiles = (counts + (size - 1)) // size
        ends = torch.cumsum(tiles, 0)
        index = torch.arange(flat.numel() // size + num_experts, device=ids.device)
        experts = torch.searchsorted(ends, index, right=True)
        known = experts.clamp(max=num_experts - 1)
        starts = offsets[known] + (index - (ends[known] - tiles[known])) * size
        return Tiles(size, order, experts.int(), starts.int(), offsets, counts)

    def only(self, chosen: torch.Tensor) -> Tiles:
        """These tiles with all but the chosen experts left out; chosen bool [E]."""
        none = len(self.counts)
        keep = chosen[self.experts.clamp(max=none - 1)]
        experts = torch.where(keep, self.experts, none)
        return dataclasses.replace(
            self, experts=experts, counts=torch.where(chosen, self.counts, 0)
        )

    @staticmethod
    def plain(tokens: int, device: torch.device) -> Tiles:
        """One group of all tokens; nothing is looked up."""
        size = min(128, max(16, next_power(tokens)))
        none = torch.empty(triton.cdiv(tokens, size), dtype=torch.int32, device=device)
        return Tiles(size, none, none, none, none, none)


def many_rows(
    x: Planes, w: torch.Tensor, rows: int, out: torch.Tensor, *, add: bool = False
) -> None:
    """out [T, rows] (+)= x @ W.T with dequantised W [1, rows padded to 8, cols]."""
    tiles = Tiles.plain(len(out), out.device)
    _gemm(x, w, rows, out, tiles, grouped=False, first=0, add=add)


def grouped_rows(
    x: Planes, w: torch.Tensor, rows: int, out: torch.Tensor, tiles: Tiles, first: int,
    bias: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """out[pair] = x[position] @ W[expert].T for the experts from first on that w holds.

    bias [E, rows], strided: one row per expert."""
    _gemm(x, w, rows, out, tiles, grouped=True, first=first, add=False, bias=bias)


def _gemm(
    x: Planes, w: torch.Tensor, rows: int, out: torch.Tensor, tiles: Tiles,
    *, grouped: bool, first: int, add: bool, bias: torch.Tensor | None = None,
) -> None:  # fmt: skip
    grid = (len(tiles.experts), triton.cdiv(rows, _SHARED_TILE["BN"]))
    gemms.gemm[grid](
        x.halves, x.scales, x.halves[0].numel(), w, out,
        tiles.order, tiles.experts, tiles.starts, tiles.offsets, *_bias(bias, x),
        first, first + len(w), len(out), rows, w.shape[1],
        GROUPED=grouped, ADD=add, BIASED=bias is not None, BM=tiles.size, **x.constants,
        **_SHARED_TILE, **_warps(tiles),
    )  # fmt: skip


def hidden_rows(
    x: Planes, w: torch.Tensor, hidden: torch.Tensor, tiles: Tiles, *,
    topk: int, grouped: bool, first: int, clamped: bool = False, bias: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """hidden [positions, I] = activation of gate and up; w [experts, 2 I, cols], gate rows first.

    bias [E, 2 I], strided: its gate and up rows alternate by 8, as stored."""
    intermediate = hidden.shape[1]
    grid = (len(tiles.experts), triton.cdiv(intermediate, 64))
    gemms.gemm_hidden[grid](
        x.halves, x.scales, x.halves[0].numel(), w, hidden,
        tiles.order, tiles.experts, tiles.starts, tiles.offsets, *_bias(bias, x),
        first, first + len(w), len(hidden), topk, CLAMPED=clamped, BIASED=bias is not None,
        INTERMEDIATE=intermediate, GROUPED=grouped, BM=tiles.size, BN=64, BK=64,
        **x.constants, **_warps(tiles),
    )  # fmt: skip


def _bias(bias: torch.Tensor | None, x: Planes) -> tuple[torch.Tensor, int]:
    """As kernels take it: biases (or anything), and from one expert's to the next."""
    return (x.scales, 0) if bias is None else (bias, bias.stride(0))


def _warps(tiles: Tiles) -> dict[str, int]:
    return {"num_warps": 8 if tiles.size == 128 else 4, "num_stages": 3}
