"""A NaN that was packed and checksummed as such must surface as NumericError, never as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe import _native
from flashmoe.bench.routing import RoutingRecorder
from flashmoe.errors import NumericError, UsageError
from flashmoe.store.packed import PackedModel
from tests.support import damage
from tests.support.packs import TinyPacks, copy_of, some_ids

PROMPT = some_ids(70)
ISAS = pytest.mark.parametrize("isa", _native.available_isas())


@ISAS
@pytest.mark.parametrize("dense", ["q4", "q8", "bf16"])
def test_in_any_resident_tensor(
    tiny_packs: TinyPacks, family: str, dense: str, isa: str, tmp_path: Path
) -> None:
    source = tiny_packs.get(family, "q4", dense)
    silent = []
    for name in PackedModel.open(source).manifest.tensors:
        pack = copy_of(source, tmp_path / name)
        damage.poison_tensor(pack, name)
        with flashmoe.load(pack, isa=isa) as model:
            try:
                model.session().feed([0, *PROMPT])  # 0: the poisoned row of the embedding
            except NumericError as error:
                assert "logits" in str(error)  # noqa: PT017
            else:
                silent.append(name)
    assert silent == []


@ISAS
@pytest.mark.parametrize("experts", ["q4", "q8", "bf16"])
def test_in_an_expert(
    tiny_packs: TinyPacks, family: str, experts: str, isa: str, tmp_path: Path
) -> None:
    """Used by the last token: an error. Used by earlier ones alone: an error or the right answer,
    for nothing that the last layer does to them reaches the last token."""
    source = tiny_packs.get(family, experts, "q8")
    expected, used = logits_and_routing(source, isa)
    for layer, ids in used.items():
        for token in (-1, 0, 40):
            pack = copy_of(source, tmp_path / f"{layer}-{token}")
            expert = int(ids[token, 0])
            damage.poison_expert(pack, layer, expert)
            with flashmoe.load(pack, isa=isa) as model:
                session = model.session()
                try:
                    got = session.feed(PROMPT)
                except NumericError:
                    with pytest.raises(UsageError):
                        session.step(1)
                else:
                    assert expert not in ids[-1]
                    assert layer == max(used)
                    np.testing.assert_array_equal(got, expected)


def logits_and_routing(pack: Path, isa: str) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    with flashmoe.load(pack, isa=isa) as model:
        session = model.session()
        recorder = RoutingRecorder(session.engine.experts)
        session.engine.experts = recorder
        logits = session.feed(PROMPT)
    return logits, {layer: passes[0] for layer, passes in recorder.ids.items()}
