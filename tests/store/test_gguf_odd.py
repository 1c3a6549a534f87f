"""GGUF files that are sound as files, but whose metadata or tensors say odd things."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.checkpoint.gguf import GgufFile
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError, ConfigError, FlashMoeError
from flashmoe.store import gguf_source
from flashmoe.store.format import SMALL_FILES
from flashmoe.store.gguf_source import GgufCheckpoint
from flashmoe.store.inplace import InPlaceModel
from tests.support.gguf_files import ARCH, write_gguf

# A few hundred bytes of metadata shall not become more than this.
MEMORY = 64 << 20
TOKENS: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": ["<unk>", "a", "b", "ab"],
    "tokenizer.ggml.scores": np.zeros(4, np.float32),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.token_type": np.array([3, 1, 1, 1], np.int32),
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.add_space_prefix": True,
    "tokenizer.ggml.add_bos_token": True,
}
NUMBERS = st.sampled_from(
    [0, 1, -1, -2, 3, 7, 2**31 - 1, 2**32 - 1, 2**63, 0.0, -1.0, 1e300, float("nan"), float("inf")]
)
VALUES = (
    NUMBERS
    | st.text(max_size=4)
    | st.booleans()
    | st.just(["a"])
    | st.sampled_from([np.zeros(0), np.arange(3, dtype=np.int32)])
)


class _Changed(GgufFile):
    """A file whose metadata and tensors are those of `change`."""

    change: Callable[[dict[str, Any], dict[str, Tensor]], None]

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        type(self).change(self.metadata, self.tensors)


def changed(
    path: Path,
    change: Callable[[dict[str, Any], dict[str, Tensor]], None],
    use: Callable[[GgufCheckpoint], object],
) -> None:
    """Opens a file as if it were changed and uses it."""
    kind = type("_Kind", (_Changed,), {"change": staticmethod(change)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_source, "GgufFile", kind)
        with GgufCheckpoint(path) as checkpoint:
            use(checkpoint)


def read_all(checkpoint: GgufCheckpoint) -> None:
    """Everything that loading in place does with a checkpoint."""
    checkpoint.small_files(SMALL_FILES)
    InPlaceModel.described(checkpoint)
    for tensor in checkpoint.tensors.values():
        assert len(checkpoint.read(tensor, 0, tensor.nbytes)) == tensor.nbytes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    for family in ARCH:
        kind = "MXFP4" if family == "gpt_oss" else "Q8_0"
        write_gguf(folder / f"{family}.gguf", family, kind)
    return {family: folder / f"{family}.gguf" for family in ARCH}


# Places in a sorted list. All is drawn before memory is traced: drawing takes some itself.
PLACES = st.integers(0, 10**6)
FAMILIES = st.sampled_from(sorted(ARCH))
KINDS = st.sampled_from(["llama", "gpt2"])


@settings(max_examples=600, deadline=None)
@given(FAMILIES, KINDS, st.lists(st.tuples(PLACES, VALUES), min_size=1, max_size=2))
def test_odd_metadata_are_typed_errors(
    files: dict[str, Path], family: str, kind: str, values: list[tuple[int, Any]]
) -> None:
    def change(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        metadata |= TOKENS | {"tokenizer.ggml.model": kind}
        for place, value in values:
            metadata[sorted(metadata)[place % len(metadata)]] = value

    only_typed_errors(files[family], change)


@settings(max_examples=400, deadline=None)
@given(FAMILIES, PLACES, PLACES, st.sampled_from(["gone", "renamed", "flat", "turned", "stacked"]))
def test_odd_tensors_are_typed_errors(
    files: dict[str, Path], family: str, place: int, other: int, how: str
) -> None:
    def change(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        name = sorted(tensors)[place % len(tensors)]
        tensor = tensors.pop(name)
        if how == "renamed":
            from_ = sorted(tensors)[other % len(tensors)]
            tensors[name] = dataclasses.replace(tensors.pop(from_), name=name)
        shapes = {"flat": (math.prod(tensor.shape),), "turned": tensor.shape[::-1]}
        shapes["stacked"] = (1, *tensor.shape)
        if how in shapes:
            tensors[name] = dataclasses.replace(tensor, shape=shapes[how])

    only_typed_errors(files[family], change)


def only_typed_errors(
    path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]
) -> None:
    tracemalloc.start()
    try:
        changed(path, change, read_all)
    except FlashMoeError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


class _Raced(GgufCheckpoint):
    """Another thread reads another computed tensor as soon as one is made."""

    other: tuple[str, np.ndarray] | None = None

    @property
    def _last(self) -> tuple[str, np.ndarray] | None:
        return self.kept

    @_last.setter
    def _last(self, made: tuple[str, np.ndarray] | None) -> None:
        self.kept = made if self.other is None else self.other


def test_computed_tensors_are_read_by_several_threads(files: dict[str, Path]) -> None:
    one, other = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    with _Raced(files["mixtral"]) as checkpoint:
        first, second = checkpoint.tensors[one], checkpoint.tensors[other]
        expected = checkpoint.read(first, 0, first.nbytes).copy()
        checkpoint.other = other, checkpoint.read(second, 0, second.nbytes).copy()
        assert np.array_equal(checkpoint.read(first, 0, first.nbytes), expected)


def test_two_names_of_the_same_tensor(files: dict[str, Path]) -> None:
    def change(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        norm = tensors["blk.0.attn_norm.weight"]
        tensors["blk.0.post_attention_norm.weight"] = norm

    with pytest.raises(CheckpointError, match=r"post_attention_layernorm.*two names.*ffn_norm"):
        changed(files["qwen3_moe"], change, read_all)


def test_an_odd_stack_of_gate_and_up(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "qwen3_moe", fused=True)

    def change(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        both = tensors["blk.0.ffn_gate_up_exps.weight"]
        count, rows, cols = both.shape
        shape, nbytes = (count, rows + 1, cols), both.nbytes // rows * (rows + 1)
        odd = dataclasses.replace(both, shape=shape, nbytes=nbytes)
        tensors["blk.0.ffn_gate_up_exps.weight"] = odd

    with pytest.raises(ConfigError, match=r"gate and up.*even"):
        changed(tmp_path / "m.gguf", change, lambda checkpoint: InPlaceModel.described(checkpoint))


def test_stacks_have_as_many_experts_as_the_metadata_say(files: dict[str, Path]) -> None:
    def change(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        metadata["qwen3moe.expert_count"] = 9

    with pytest.raises(ConfigError, match=r"metadata contradict the shape; expected \[9"):
        changed(files["qwen3_moe"], change, read_all)


@pytest.mark.parametrize("gone", ["attn_v_b", "attn_k_b"])
def test_half_of_the_latent_attention_is_missing(gone: str, files: dict[str, Path]) -> None:
    def change(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors[f"blk.0.{gone}.weight"]

    with pytest.raises(CheckpointError, match="tensor is missing"):
        changed(files["deepseek_v3"], change, read_all)
