"""Checkpoints that do not exist: random weights in the shapes of a known model, for measuring.

They look like an open Checkpoint to the packer, which encodes and writes them like any other.
Matrices are slices of one block of normally distributed numbers, scaled so that hidden states keep
their size and routing spreads, or is skewed (flashmoe.bench.skew); norms are 1.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flashmoe.bench.shapes import shape_config
from flashmoe.bench.skew import ANCHOR, Skew, parse_skew, router_column
from flashmoe.checkpoint.safetensors import ITEM_BYTES, Tensor
from flashmoe.models.registry import family_name, load_family
from flashmoe.models.specs import ExpertsSpec, VectorSpec, WeightSpecs
from flashmoe.quant.layout import to_bf16

# Weights in the block that all tensors are cut from.
BLOCK_WEIGHTS = 1 << 23
_BF16_BYTES = 2
_EMBEDDING = "embed_tokens.weight"
# What these compute is added to the hidden state.
_ADDERS = ("o_proj.weight", "o_b_proj.weight", "out_proj.weight", "down_proj.weight")
_ROUTER = re.compile(r".*layers\.(\d+)\.mlp\.(?:gate|router)\.weight")


class SyntheticCheckpoint:
    """What the packer needs of flashmoe.checkpoint.directory.Checkpoint, made up as it is read.

    skew: as for flashmoe.bench.skew.parse_skew; None: routing spreads evenly.
    """

    def __init__(
        self, name: str, layers: int | None = None, seed: int = 0, skew: str | None = None
    ) -> None:
        self.path = Path(f"synthetic-{name}")
        self.config = shape_config(name, layers)
        self.files: dict[Path, Any] = {}
        family = load_family(family_name(self.config))
        specs = family.weights(family.read_config(dict(self.config)))
        self.tensors = {tensor.name: tensor for tensor in _declare(specs, self.path)}
        self._constant = {v.source: _constant(v) for v in specs.vectors}
        self._tables = {v.source: v.below for v in specs.vectors if v.below}
        self._constant |= {
            name: 0.0 for e in specs.experts for name in (e.gate_up_bias, e.down_bias)
        }
        self._seed = seed
        self.skew = None if skew is None else parse_skew(skew, self.config["num_experts"])

    def read(self, tensor: Tensor, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes [start, start + nbytes) of a made-up tensor, bf16 but for tables -> uint8."""
        if tensor.name in self._tables:
            return _table_bytes(self._tables[tensor.name], start // 4, nbytes // 4)
        first, count = start // _BF16_BYTES, nbytes // _BF16_BYTES
        constant = self._constant.get(tensor.name)
        if constant is not None:
            bits = to_bf16(np.full(count, constant, dtype=np.float32))
        else:
            begin = (zlib.crc32(tensor.name.encode()) + first) % BLOCK_WEIGHTS
            bits = _stretch(_normal_block(variance_divisor(tensor), self._seed), begin, count)
            if self.skew is not None:
                bits = self._anchored(self.skew, tensor, first, bits)
        return np.ascontiguousarray(bits).view(np.uint8)

    def _anchored(
        self, skew: Skew, tensor: Tensor, first: int, bits: NDArray[np.uint16]
    ) -> NDArray[np.uint16]:
        """The weights from `first` on, whole rows, with what skews routing: dimension 0 of hidden
        states, which embeddings set, layers leave alone, and routers look at."""
        width = tensor.shape[-1]
        router, begin = _ROUTER.fullmatch(tensor.name), first // width
        if router is None and not tensor.name.endswith((_EMBEDDING, *_ADDERS)):
            return bits
        rows = bits.reshape(-1, width).copy()
        if router is not None:
            column = router_column(skew, int(router[1]), self.config["num_experts_per_tok"])
            rows[:, 0] = to_bf16(column)[begin : begin + len(rows)]
        elif tensor.name.endswith(_EMBEDDING):
            rows[:, 0] = to_bf16(np.array([ANCHOR], dtype=np.float32))
        elif begin == 0:
            rows[0] = 0
        return rows.reshape(-1)

    def small_files(self, names: Sequence[str]) -> dict[str, bytes]:
        """config.json and a tokenizer with the right number of made-up tokens."""
        return {
            "config.json": json.dumps(self.config, indent=1).encode(),
            "tokenizer.json": made_up_tokenizer(self.config["vocab_size"]).encode(),
        }

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def variance_divisor(tensor: Tensor) -> int:
    """1 / variance. What layers add must stay small beside the embedding: random attention gives
    every token the same average, and if that dominates, all tokens are routed alike."""
    if tensor.name.endswith(_EMBEDDING):
        return 1
    return tensor.shape[-1] * (16 if tensor.name.endswith(_ADDERS) else 1)


@functools.lru_cache(maxsize=8)
def _normal_block(variance_divisor: int, seed: int) -> NDArray[np.uint16]:
    block = np.random.default_rng(seed).standard_normal(BLOCK_WEIGHTS, dtype=np.float32)
    return to_bf16(block / np.float32(variance_divisor**0.5))


def _stretch(block: NDArray[np.uint16], begin: int, count: int) -> NDArray[np.uint16]:
    """count numbers of the block from begin on, round and round."""
    if begin + count <= len(block):
        return block[begin : begin + count]
    return np.resize(np.roll(block, -begin), count)


def _table_bytes(below: int, first: int, count: int) -> NDArray[np.uint8]:
    """Part of an I32 table of whole numbers that looks random; neighbours differ."""
    numbers = np.arange(first, first + count, dtype=np.int64) * 97 + first // 1009
    return (numbers % below).astype("<i4").view(np.uint8)


def _constant(vector: VectorSpec) -> float | None:
    """What a vector is filled with: norms come out as 1, the rest is small; None: random."""
    if vector.name.endswith("norm"):
        return 1.0 - vector.offset
    return None if len(vector.shape) > 1 else 0.0


def _declare(specs: WeightSpecs, path: Path) -> Iterator[Tensor]:
    for matrix in specs.matrices:
        for source in matrix.sources:
            yield _tensor(source.name, path, source.shape(matrix.cols))
    for vector in specs.vectors:
        dtype = "I32" if vector.below else "BF16"
        yield _tensor(vector.source, path, vector.shape, dtype)
    for experts in specs.experts:
        yield from _declare_experts(experts, path)


def _declare_experts(spec: ExpertsSpec, path: Path) -> Iterator[Tensor]:
    wide, narrow = spec.hidden_size, spec.intermediate_size
    for expert in range(spec.num_experts):
        yield _tensor(spec.gate.format(expert=expert), path, (narrow, wide))
        yield _tensor(spec.up.format(expert=expert), path, (narrow, wide))
        yield _tensor(spec.down.format(expert=expert), path, (wide, narrow))
    if spec.gate_up_bias:
        yield _tensor(spec.gate_up_bias, path, (spec.num_experts, 2 * narrow))
        yield _tensor(spec.down_bias, path, (spec.num_experts, wide))


def _tensor(name: str, path: Path, shape: tuple[int, ...], dtype: str = "BF16") -> Tensor:
    return Tensor(name, path, dtype, shape, 0, ITEM_BYTES[dtype] * int(np.prod(shape)))


def byte_tokens(vocab_size: int) -> list[str]:
    """Tokens by id: one per byte, the others with names of their own."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return alphabet + [f"<{i}>" for i in range(len(alphabet), vocab_size)]


def made_up_tokenizer(vocab_size: int) -> str:
    """tokenizer.json: one token per byte, the other ids filled with names of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {name: i for i, name in enumerate(byte_tokens(vocab_size))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text: str = tokenizer.to_str()
    return text
