from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.checkpoint.names import Names
from flashmoe.checkpoint.safetensors import Tensor
from flashmoe.errors import CheckpointError


def tensors(*names: str) -> dict[str, Tensor]:
    return {name: Tensor(name, Path("f"), "BF16", (1,), 0, 2) for name in names}


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("model.", ""),
        ("model.language_model.", ""),
        ("model.language_model.", "model.language_model."),
        ("language_model.model.", "language_model."),
    ],
)
def test_canonical_names_are_found_under_every_prefix(inner: str, outer: str) -> None:
    found = tensors(f"{inner}embed_tokens.weight", f"{inner}layers.0.x", f"{outer}lm_head.weight")
    names = Names(found, "here")
    assert names.take("model.layers.0.x").name == f"{inner}layers.0.x"
    assert names.take("lm_head.weight").name == f"{outer}lm_head.weight"
    names.take("model.embed_tokens.weight")
    names.finish(())


def test_missing_tensor_is_named_as_on_disk() -> None:
    names = Names(tensors("model.language_model.embed_tokens.weight"), "here")
    assert names.find("model.norm.weight") is None
    with pytest.raises(CheckpointError, match=r"here: .* model\.language_model\.norm\.weight"):
        names.take("model.norm.weight")


def test_names_may_be_spelt_otherwise() -> None:
    found = tensors("model.embed_tokens.weight", "model.layers.0.moe.w1", "model.layers.1.mlp.w1")
    names = Names(found, "here", ((".mlp.", ".moe."), (".gate", ".w1")))
    assert names.take("model.layers.0.mlp.gate").name == "model.layers.0.moe.w1"
    assert names.take("model.layers.1.mlp.w1").name == "model.layers.1.mlp.w1"
    with pytest.raises(CheckpointError, match=r"expected model\.layers\.2\.moe\.w1"):
        names.take("model.layers.2.mlp.gate")


def test_no_known_prefix() -> None:
    with pytest.raises(CheckpointError, match=r"tensor is missing; expected model\.embed_tokens"):
        Names(tensors("transformer.wte.weight"), "here")


def test_tensors_that_nobody_took_are_listed() -> None:
    found = tensors("model.embed_tokens.weight", "mtp.x", *(f"model.odd.{i}" for i in range(5)))
    names = Names(found, "here")
    names.take("model.embed_tokens.weight")
    with pytest.raises(CheckpointError, match=r"got model\.odd\.0, .*model\.odd\.2 and 2 more"):
        names.finish(("mtp.",))
    names.finish(("mtp.", "model.odd."))
