"""What a family says about its weights: the contract between model files, pack and store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flashmoe.ops.base import Activation


@dataclass(frozen=True)
class Source:
    """`rows` rows first, first + step, ... of a checkpoint tensor of `of` rows (0: of `rows`).

    name: canonical ("model.layers.0...").
    transposed: rows first, first + 1, ... of the tensor, which has `rows` columns, are the columns.
    """

    name: str
    rows: int
    first: int = 0
    of: int = 0
    step: int = 1
    transposed: bool = False

    def shape(self, cols: int) -> tuple[int, int]:
        """Of the whole tensor, if the source gives `cols` columns."""
        height = self.of or (cols if self.transposed else self.rows)
        return (height, self.rows if self.transposed else cols)


@dataclass(frozen=True)
class MatrixSpec:
    """A resident matrix [rows, cols], stored in a weight format.

    sources: what is stacked in order; all have `cols` columns.
    role: "dense" follows --dense; "exact" is always bf16 (routers and tiny projections).
    interleave: two sources (gate, up) of equal shape whose rows alternate in blocks of 8.
    """

    name: str
    sources: tuple[Source, ...]
    cols: int
    role: Literal["dense", "exact"] = "dense"
    interleave: bool = False

    @property
    def rows(self) -> int:
        """Rows of all sources together."""
        return sum(source.rows for source in self.sources)


@dataclass(frozen=True)
class VectorSpec:
    """A small resident float32 tensor. offset is added to every element (1 for 1 + w norms).

    below: not 0 for a table of whole numbers from 0 to below - 1, integers in checkpoints.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    offset: float = 0.0
    below: int = 0


@dataclass(frozen=True)
class ExpertsSpec:
    """The routed experts of one layer: gate and up [I, H] and down [H, I].

    gate, up, down: checkpoint names with "{expert}" for per-expert checkpoints.
    fused_gate_up [E, 2 I, H] (gate rows first), fused_down [E, H, I]: names for fused ones.
    paired: fused as gpt-oss does it, gate and up rows in turn, and either every expert transposed
    (fused_gate_up [E, H, 2 I], fused_down [E, I, H]) or in MXFP4 under NAME_blocks and NAME_scales.
    gate_up_bias [E, 2 I], in the same order, and down_bias [E, H]: names; empty: no biases.
    """

    layer: int
    num_experts: int
    hidden_size: int
    intermediate_size: int
    gate: str
    up: str
    down: str
    fused_gate_up: str
    fused_down: str
    paired: bool = False
    activation: Activation = "swiglu"
    gate_up_bias: str = ""
    down_bias: str = ""


@dataclass(frozen=True)
class WeightSpecs:
    """All weights of a model. ignored: prefixes of checkpoint tensors left out on purpose.

    spellings: (part of the names above, what checkpoints may have in its place).
    """

    matrices: tuple[MatrixSpec, ...]
    vectors: tuple[VectorSpec, ...]
    experts: tuple[ExpertsSpec, ...]
    ignored: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
