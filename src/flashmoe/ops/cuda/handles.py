"""What the CUDA backend hands to layers: stored matrices, and results yet to be computed.

Norms and rotations are cheap beside a kernel launch, so they are not run on their own for a few
tokens: they wait as a handle and become part of the kernel that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton

from flashmoe.ops.cuda.kernels import rows
from flashmoe.quant import Format
from flashmoe.quant.layout import row_blocks


@dataclass(frozen=True)
class DeviceMatrix:
    """A stored matrix [rows, cols] in device memory: data int32, the words of the pack."""

    format: Format
    rows: int
    cols: int
    data: torch.Tensor

    @property
    def blocks(self) -> int:
        """Blocks of 8 rows."""
        return row_blocks(self.rows)


@dataclass
class Normed:
    """x [T, H] / rms(x) * weight, not yet computed; `value` once some kernel has kept it.

    codes: the value in fixed point too, int32 [T, 6, H / 8] (kernels/gemv.py, load_codes).
    """

    x: torch.Tensor
    weight: torch.Tensor
    eps: float
    value: torch.Tensor | None = field(default=None)
    codes: torch.Tensor | None = field(default=None)

    def __len__(self) -> int:
        return len(self.x)

    def computed(self) -> torch.Tensor:
        """The value, computed now if no kernel has kept it."""
        if self.value is None:
            # Of projections that lie side by side in one buffer, rows are further apart.
            self.value, cols = self.x.new_empty(self.x.shape), self.x.shape[1]
            block = triton.next_power_of_2(cols)
            rows.rms_norm[(len(self),)](
                self.x, self.weight, self.value, self.eps, self.x.stride(0), COLS=cols, BLOCK=block
            )
        return self.value

    def reshape(self, *shape: int) -> torch.Tensor:
        """The value in another shape: a norm over all heads comes before what is done per head."""
        return self.computed().reshape(*shape)


@dataclass(frozen=True)
class Rotated:
    """Heads [T, heads, D] to be normed (if weight) and rotated by cos, sin [T, half]."""

    x: torch.Tensor
    weight: torch.Tensor | None
    eps: float
    cos: torch.Tensor
    sin: torch.Tensor

    @property
    def turn(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As kernels take it: weight (or anything), cos, sin."""
        return self.cos if self.weight is None else self.weight, self.cos, self.sin

    @property
    def constants(self) -> dict[str, int | bool]:
        """What kernels that read heads are compiled for."""
        dim = self.x.shape[2]
        return {
            "D": dim,
            "HALF": self.cos.shape[1],
            "NORM": self.weight is not None,
            "BLOCK": triton.next_power_of_2(dim),
        }

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Rotated:
        return Rotated(self.x[rows], self.weight, self.eps, self.cos[rows], self.sin[rows])


@dataclass(frozen=True)
class NewKeys:
    """Keys and values [1, Hkv, D] of one token, for the attention that reads their caches to store.

    They are stored by the kernel of that attention: a launch less.
    """

    k: Rotated
    v: torch.Tensor
    k_cache: torch.Tensor
