"""Whole tiny models: packed once, loaded with the reader or the backend that a test needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import flashmoe
from flashmoe.api import Model
from flashmoe.experts.source import Reader
from flashmoe.loading import load_model
from flashmoe.ops.base import Ops
from flashmoe.ops.cpu import CpuOps
from flashmoe.settings import EngineSettings, environment
from tests.support.tiny_checkpoints import Tensors, round_to_bf16, write_checkpoint

VOCAB = 300
# Enough experts for caches of several sizes: 16 per layer, 4 of them per token.
SIZES = {"num_experts": 16, "num_experts_per_tok": 4, "vocab_size": VOCAB}


class TinyPacks:
    """Packs by family and formats, made when first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, family: str, experts: str = "q4", dense: str = "q8", group: int = 32) -> Path:
        """The directory of a pack; not to be changed."""
        path = self._root / f"{family}-{experts}-{dense}-{group}"
        if not path.exists():
            flashmoe.pack(self._source(family), path, experts=experts, dense=dense, group=group)
        return path

    def _source(self, family: str) -> Path:
        path = self._root / family
        if not path.exists():
            write_checkpoint(path, family, change=lively, **SIZES)
            (path / "tokenizer.json").unlink()  # a placeholder: these models are fed token ids
        return path


def lively(tensors: Tensors) -> None:
    """Scale random weights so that every layer matters: signals neither vanish nor drown."""
    for name, w in tensors.items():
        tensors[name] = round_to_bf16(w + np.float32(1)) if "norm" in name else w * np.float32(2)


def copy_of(pack: Path, destination: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(pack, destination)


def load_with(
    path: Path,
    *,
    make_reader: Callable[[int], Reader] | None = None,
    make_ops: Callable[[int, str], Ops] = CpuOps,
    **settings: Any,
) -> Model:
    """flashmoe.load with another reader or backend."""
    chosen = EngineSettings(**{**environment(), **settings})
    return Model(load_model(path, chosen, make_ops=make_ops, make_reader=make_reader))


def some_ids(count: int, seed: int = 0, vocab: int = VOCAB) -> list[int]:
    """Random token ids."""
    ids: list[int] = np.random.default_rng(seed).integers(0, vocab, count).tolist()
    return ids


@dataclass(frozen=True)
class Transcript:
    """What a model made of a prompt, to the last bit: logits of each token, then of each step."""

    prompt: NDArray[np.float32]
    steps: NDArray[np.float32]
    ids: list[int]


def transcript(model: Model, prompt: Sequence[int], steps: int) -> Transcript:
    """Prefill, then greedy decoding."""
    session = model.session()
    logits = session.feed_all(prompt)
    ids, rows = [int(logits[-1].argmax())], []
    for _ in range(steps):
        rows.append(session.step(ids[-1]).copy())
        ids.append(int(rows[-1].argmax()))
    return Transcript(logits, np.array(rows), ids)


def assert_same_bits(got: Transcript, expected: Transcript) -> None:
    """Equal to the last bit."""
    np.testing.assert_array_equal(got.prompt, expected.prompt)
    np.testing.assert_array_equal(got.steps, expected.steps)
    assert got.ids == expected.ids
