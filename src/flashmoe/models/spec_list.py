"""Builds WeightSpecs with little typing: checkpoint names follow from the names in the pack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from flashmoe.models.specs import ExpertsSpec, MatrixSpec, Source, VectorSpec, WeightSpecs
from flashmoe.ops.base import Activation

# How published Mixtral and MiniMax-M2 checkpoints spell the names of `experts` and their router.
MIXTRAL_SPELLINGS = (
    (".mlp.", ".block_sparse_moe."),
    (".gate_proj.", ".w1."),
    (".up_proj.", ".w3."),
    (".down_proj.", ".w2."),
)


class SpecList:
    """Collects specs; "layers.0.x" comes from the checkpoint tensor "model.layers.0.x.weight"."""

    def __init__(self) -> None:
        self._matrices: list[MatrixSpec] = []
        self._vectors: list[VectorSpec] = []
        self._experts: list[ExpertsSpec] = []

    def matrix(
        self, name: str, rows: int, cols: int, role: Literal["dense", "exact"] = "dense"
    ) -> None:
        """A matrix [rows, cols] of one source."""
        self.stack(name, (Source(f"model.{name}.weight", rows),), cols, role)

    def stack(
        self,
        name: str,
        sources: Iterable[Source],
        cols: int,
        role: Literal["dense", "exact"] = "dense",
    ) -> None:
        """A matrix of rows from several places."""
        self._matrices.append(MatrixSpec(name, tuple(sources), cols, role))

    def gate_up(self, stem: str, intermediate_size: int, hidden_size: int) -> None:
        """`stem`.gate_up [2 I, H]: gate_proj and up_proj, interleaved."""
        sources = tuple(
            Source(f"model.{stem}.{part}_proj.weight", intermediate_size) for part in ("gate", "up")
        )
        self._matrices.append(MatrixSpec(f"{stem}.gate_up", sources, hidden_size, interleave=True))

    def mlp(self, stem: str, intermediate_size: int, hidden_size: int) -> None:
        """A SwiGLU: `stem`.gate_up and `stem`.down_proj."""
        self.gate_up(stem, intermediate_size, hidden_size)
        self.matrix(f"{stem}.down_proj", hidden_size, intermediate_size)

    def attention(self, layer: int, config: Any, biases: str = "") -> None:
        """The projections of grouped-query attention; config: any family's, for the sizes.

        biases: the letters of those out of q, k, v, o that have one.
        """
        hidden, dim = config.hidden_size, config.head_dim
        q, kv = config.num_attention_heads * dim, config.num_key_value_heads * dim
        shapes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        for part, (rows, cols) in shapes.items():
            name = f"layers.{layer}.self_attn.{part}_proj"
            self.matrix(name, rows, cols)
            if part in biases:
                self.vector(f"{name}.bias", rows, suffix="")

    def vector(self, name: str, *shape: int, offset: float = 0.0, suffix: str = ".weight") -> None:
        """A float32 vector; suffix "" for parameters that are not `.weight` of a module."""
        self._vectors.append(VectorSpec(name, f"model.{name}{suffix}", shape, offset))

    def table(self, name: str, shape: tuple[int, ...], below: int) -> None:
        """A table of whole numbers from 0 to below - 1."""
        self._vectors.append(VectorSpec(name, f"model.{name}", shape, below=below))

    def experts(
        self,
        layer: int,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation = "swiglu",
        paired: bool = False,
        biases: bool = False,
    ) -> None:
        """Routed experts under layers.N.mlp.experts, one tensor per projection or fused."""
        stem = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            f"{stem}.{{expert}}.{part}_proj.weight" for part in ("gate", "up", "down")
        )
        self._experts.append(
            ExpertsSpec(
                layer,
                num_experts,
                hidden_size,
                intermediate_size,
                gate=gate,
                up=up,
                down=down,
                fused_gate_up=f"{stem}.gate_up_proj",
                fused_down=f"{stem}.down_proj",
                paired=paired,
                activation=activation,
                gate_up_bias=f"{stem}.gate_up_proj_bias" if biases else "",
                down_bias=f"{stem}.down_proj_bias" if biases else "",
            )
        )

    def finish(
        self,
        tied: bool,
        ignored: tuple[str, ...] = (),
        spellings: tuple[tuple[str, str], ...] = (),
    ) -> WeightSpecs:
        """All specs, with the head: its own matrix, or, if tied, the embedding."""
        if tied:
            ignored = (*ignored, "lm_head.", "language_model.lm_head.")
        else:
            embed = self._matrices[0]
            assert embed.name == "embed_tokens"
            self.stack("lm_head", (Source("lm_head.weight", embed.rows),), embed.cols)
        return WeightSpecs(
            tuple(self._matrices), tuple(self._vectors), tuple(self._experts), ignored, spellings
        )
