"""A sequence that goes on: what it holds is not read again, and does not show in the bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
from flashmoe.chat.sequence import Continued
from flashmoe.demo import demo_model_path
from flashmoe.text.tokenizer import Tokenizer
from tests.support.packs import some_ids

TOKENIZER = Tokenizer(demo_model_path())
HISTORY = some_ids(150)


def ignore(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("kept", [False, True])
def test_a_prompt_that_drops_the_answer_goes_on_from_a_kept_state(
    tiny: Path, family: str, kept: bool
) -> None:
    """As where a template leaves out earlier reasoning."""
    later = [*HISTORY, *some_ids(40, 3)]
    with flashmoe.load(tiny, cache="50%", prefix_ram=32 << 20) as model:
        going = Continued(model.session(), TOKENIZER, model.prefix_cache() if kept else None)
        going.read(HISTORY, ignore)
        for id in some_ids(20, 9):
            going.step(id)
        logits, reused = going.read(later, ignore)
        goes_back = family != "qwen3_5_moe"  # the one with a delta rule
        assert reused == (len(HISTORY) if goes_back else 128 if kept else 0)
        assert going.ids == later
        np.testing.assert_array_equal(logits, model.session().feed(later))


def test_a_state_that_went_through_an_answer_is_not_kept(tiny: Path) -> None:
    with flashmoe.load(tiny, cache="50%", prefix_ram=32 << 20) as model:
        prefixes = model.prefix_cache()
        going = Continued(model.session(), TOKENIZER, prefixes)
        going.read(HISTORY[:40], ignore)
        going.step(HISTORY[40])
        going.read(HISTORY, ignore)
        assert prefixes.nbytes == 0
