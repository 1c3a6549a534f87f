"""Whole models on the NumPy backend and on the native one: the same formulas, written twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe import _native
from flashmoe.api import Model
from flashmoe.ops.base import Floats, Ops
from flashmoe.ops.reference import ReferenceOps
from tests.support.packs import (
    TinyPacks,
    Transcript,
    assert_same_bits,
    load_with,
    some_ids,
    transcript,
)
from tests.support.tolerances import LOGITS_FLIPPED, LOGITS_REFERENCE, LOGITS_UNFLIPPED

# Past one block of the delta rule, so that its chunked and its recurrent form both run.
PROMPT = some_ids(70)
STEPS = 6
SHORT = [some_ids(n % 4 + 1, seed=n) for n in range(24)]
ISAS = pytest.mark.parametrize("isa", _native.available_isas())
FORMATS = [("bf16", "bf16"), ("q8", "q8"), ("q4", "q4"), ("q4", "q8"), ("bf16", "q4")]


def reference(threads: int, isa: str) -> Ops:
    return ReferenceOps()


@pytest.fixture(scope="module", params=FORMATS, ids=lambda formats: "-".join(formats))
def formats(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Of the experts and of the rest."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture(scope="module")
def pack(tiny_packs: TinyPacks, family: str, formats: tuple[str, str]) -> Path:
    return tiny_packs.get(family, *formats)


@pytest.fixture(scope="module")
def slow(pack: Path) -> Iterator[Model]:
    with load_with(pack, make_ops=reference, cache=0) as model:
        yield model


@pytest.fixture(scope="module")
def expected(slow: Model) -> Transcript:
    return transcript(slow, PROMPT, STEPS)


@pytest.fixture(scope="module")
def expected_short(slow: Model) -> list[Floats]:
    return [slow.session().feed(prompt) for prompt in SHORT]


@ISAS
def test_native_and_numpy_agree(
    pack: Path, formats: tuple[str, str], expected: Transcript, isa: str
) -> None:
    with flashmoe.load(pack, isa=isa, cache=0) as model:
        session = model.session()
        prompt = session.feed_all(PROMPT)
        # The same tokens as the reference chose, whether or not they are the likeliest here.
        steps = np.array([session.step(id).copy() for id in expected.ids[:-1]])
    bound = LOGITS_REFERENCE if formats == ("bf16", "bf16") else LOGITS_FLIPPED
    both = np.concatenate([expected.prompt, expected.steps])
    assert_close(np.concatenate([prompt, steps]), both, bound)


@ISAS
def test_most_short_prompts_agree_to_rounding(
    pack: Path, expected_short: list[Floats], isa: str
) -> None:
    with flashmoe.load(pack, isa=isa, cache=0) as model:
        got = [model.session().feed(prompt) for prompt in SHORT]
    errors = [np.abs(a - b).max() for a, b in zip(got, expected_short, strict=True)]
    assert np.quantile(errors, 0.75) <= LOGITS_UNFLIPPED


def assert_close(got: Floats, expected: Floats, bound: float) -> None:
    """Within the bound, and the same choice wherever it is clear."""
    assert np.abs(got - expected).max() <= bound
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > bound
    assert clear.any()
    assert (got.argmax(1) == expected.argmax(1))[clear].all()


def test_the_reference_does_not_depend_on_the_cache_either(tiny: Path) -> None:
    with load_with(tiny, make_ops=reference, cache="all") as model:
        resident = transcript(model, PROMPT[:20], 2)
    with load_with(tiny, make_ops=reference, cache=0, readers=1) as model:
        assert_same_bits(transcript(model, PROMPT[:20], 2), resident)
