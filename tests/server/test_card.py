"""The server's worker on a card: one answer at a time, as `flashmoe run` gives it."""

from __future__ import annotations

from threading import Event as Flag

import pytest

from flashmoe.api import Model
from flashmoe.generate.request import Event, Failed, Finished, OnEvent
from flashmoe.server.worker import Worker
from flashmoe.settings import EngineSettings
from tests.support.card import card
from tests.support.packs import TinyPacks, some_ids
from tests.support.serving import TOKENIZER, Told, ask

pytestmark = pytest.mark.cuda
TOKENS = 3


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe"])
def test_answers_are_those_of_a_session(
    tiny_packs: TinyPacks, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests wait for the one place; none sees what was before it."""
    device = card()
    from flashmoe.cuda import load_on_card

    settings = EngineSettings(vram=8 << 30, context_length=64, device="cuda")
    prompts = [some_ids(n, n) for n in (1, 9, 20)]
    with Model(load_on_card(tiny_packs.get(family), settings, device)) as model:
        monkeypatch.setattr(Model, "tokenizer", TOKENIZER)
        expected = [greedy(model, prompt) for prompt in prompts]
        with Worker(model) as worker:
            told = [Told() for _ in prompts]
            over = [Flag() for _ in prompts]
            for prompt, events, flag in zip(prompts, told, over, strict=True):
                worker.submit(ask(prompt, TOKENS), listener(events, flag))
            assert all(flag.wait(500) for flag in over)
    assert [events.ids for events in told] == expected


def listener(told: Told, over: Flag) -> OnEvent:
    def listen(event: Event) -> None:
        told.events.append(event)
        if isinstance(event, Finished | Failed):
            over.set()

    return listen


def greedy(model: Model, prompt: list[int]) -> list[int]:
    session, ids = model.session(), list[int]()
    logits = session.feed(prompt)
    for _ in range(TOKENS):
        ids.append(int(logits.argmax()))
        logits = session.step(ids[-1])
    return ids
