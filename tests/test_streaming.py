"""Where the experts come from must not show in the result: bits are compared, not tolerances."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe import _native
from flashmoe.api import Model
from flashmoe.bench.routing import RoutingRecorder
from flashmoe.errors import UsageError
from flashmoe.ops.base import Floats
from flashmoe.store.packed import PackedModel
from tests.support.fake_reader import FakeReader
from tests.support.packs import (
    TinyPacks,
    Transcript,
    assert_same_bits,
    load_with,
    some_ids,
    transcript,
)

PROMPT = some_ids(150)
STEPS = 30
K, READERS = 4, 1
FLOOR = K + READERS  # slots


def record_bytes(pack: Path) -> int:
    return PackedModel.open(pack).manifest.experts.record_bytes


def run(pack: Path, **settings: Any) -> Transcript:
    with flashmoe.load(pack, **{"readers": READERS, **settings}) as model:
        return transcript(model, PROMPT, STEPS)


@pytest.fixture(scope="module")
def expected(tiny_packs: TinyPacks, family: str) -> Transcript:
    """With every expert in memory and one thread."""
    return run(tiny_packs.get(family), cache="all", threads=1)


@pytest.mark.parametrize("slots", [0, FLOOR, FLOOR + 1, 8, 16, 24])
def test_every_cache_size_gives_the_same_bits(tiny: Path, expected: Transcript, slots: int) -> None:
    assert_same_bits(run(tiny, cache=slots * record_bytes(tiny)), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 8])
def test_every_number_of_threads_and_readers_gives_the_same_bits(
    tiny: Path, expected: Transcript, threads: int, readers: int
) -> None:
    assert_same_bits(run(tiny, cache=0, threads=threads, readers=readers), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slots", [0, FLOOR, 16])
def test_reads_that_land_late_and_in_any_order_give_the_same_bits(
    tiny: Path, expected: Transcript, seed: int, slots: int
) -> None:
    reader = FakeReader(seed=seed, delay_s=0.0002)
    cache = slots * record_bytes(tiny)
    with load_with(tiny, make_reader=lambda threads: reader, cache=cache, readers=1) as model:
        assert_same_bits(transcript(model, PROMPT, STEPS), expected)


@pytest.mark.parametrize("mode", ["on", "off", "auto"])
@pytest.mark.parametrize("slots", [8, 16, 24])
def test_reading_ahead_does_not_change_the_bits(
    tiny: Path, expected: Transcript, mode: str, slots: int
) -> None:
    assert_same_bits(run(tiny, cache=slots * record_bytes(tiny), prefetch=mode), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_guesses_late_or_in_time_give_the_same_bits(
    tiny: Path, expected: Transcript, seed: int, share: float
) -> None:
    reader = FakeReader(seed=seed, guess_share=share)
    cache = 24 * record_bytes(tiny)
    settings: dict[str, Any] = {"cache": cache, "readers": 1, "prefetch": "on"}
    with load_with(tiny, make_reader=lambda threads: reader, **settings) as model:
        assert_same_bits(transcript(model, PROMPT, STEPS), expected)
        assert model.stats.prefetched > 0


def test_reading_ahead_reads_the_same_experts(tiny: Path) -> None:
    """Hits and misses are a function of what is wanted, whatever the guesses."""
    counts = set()
    for seed, share in ((0, 0.0), (1, 0.5), (2, 1.0)):
        reader = FakeReader(seed=seed, guess_share=share)
        settings: dict[str, Any] = {"cache": 24 * record_bytes(tiny), "prefetch": "on"}
        with load_with(tiny, make_reader=lambda threads, r=reader: r, **settings) as model:
            transcript(model, PROMPT, STEPS)
            stats = model.stats
            counts.add((stats.cache_hits, stats.cache_misses, stats.bytes_read))
    assert len(counts) == 1


def test_an_unknown_way_of_reading_ahead_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"prefetch: unknown choice.*auto \| on \| off"):
        flashmoe.load(tiny, prefetch="maybe")


def test_a_cache_below_the_floor_is_refused(tiny: Path) -> None:
    too_small = FLOOR * record_bytes(tiny) - 1
    with pytest.raises(UsageError, match=rf"--cache: smaller than .* \({FLOOR} experts\)"):
        flashmoe.load(tiny, cache=too_small, readers=READERS)


def test_bytes_read_fall_as_the_cache_grows() -> None:
    """The budgets that the README shows, on the demo model."""
    answers, read = set(), []
    for cache in ("0", "10%", "25%", "50%", "100%"):
        with flashmoe.load(cache=cache, context_length=256) as model:
            pieces = model.generate("Once upon a time", max_tokens=48)
            answers.add(tuple((piece.token_id, piece.logprob) for piece in pieces))
            read.append(model.stats.bytes_read)
    assert len(answers) == 1
    # 10 % are fewer than one token's experts: the least recently used one is never wanted in time.
    assert read[0] >= read[1] > read[2] > read[3] > read[4]


@pytest.fixture
def recorded(tiny: Path) -> Any:
    """A function (cache) -> (model, recorder of its routing)."""
    models: list[Model] = []

    def load(cache: int | str) -> tuple[Model, RoutingRecorder]:
        model = flashmoe.load(tiny, cache=cache, readers=READERS)
        models.append(model)
        engine = model.session().engine
        recorder = RoutingRecorder(engine.experts)
        engine.experts = recorder
        return model, recorder

    yield load
    for model in models:
        model.close()


Recorded = Callable[[int | str], tuple[Model, RoutingRecorder]]


def wanted(recorder: RoutingRecorder) -> list[list[int]]:
    """Distinct experts of each pass, per layer."""
    return [[len(np.unique(ids)) for ids in passes] for passes in recorder.ids.values()]


@pytest.mark.parametrize("chunk", [16, 64, 150])
def test_prefill_reads_each_needed_expert_once_per_layer_and_chunk(
    tiny: Path, recorded: Recorded, chunk: int
) -> None:
    model, recorder = recorded(0)
    model.logits([1])
    recorder.ids.clear()
    before = model.stats
    model.session().feed_all(PROMPT, chunk=chunk)
    after = model.stats
    passes = -(-len(PROMPT) // chunk)
    assert all(len(layer) == passes for layer in wanted(recorder))
    reads = sum(map(sum, wanted(recorder)))
    assert reads > passes * K * len(recorder.ids)  # more than the slots: some wait for a slot
    assert after.cache_misses - before.cache_misses == reads
    assert after.bytes_read - before.bytes_read == reads * record_bytes(tiny)


def test_cache_0_keeps_nothing_beyond_a_step(recorded: Recorded) -> None:
    model, recorder = recorded(0)
    session = model.session()
    session.feed(PROMPT)
    for id in (5, 5, 5):
        session.step(id)
    assert model.stats.cache_hits == 0
    assert model.stats.cache_misses == sum(map(sum, wanted(recorder)))


def test_cache_all_reads_each_expert_at_most_once(tiny: Path, recorded: Recorded) -> None:
    model, recorder = recorded("all")
    transcript(model, PROMPT, STEPS)
    used = sum(len(np.unique(np.concatenate(p, axis=None))) for p in recorder.ids.values())
    assert model.stats.bytes_read == used * record_bytes(tiny)
    assert model.stats.cache_hits + used == sum(map(sum, wanted(recorder)))


def test_interleaved_sessions_do_not_disturb_each_other(tiny: Path) -> None:
    prompts = [some_ids(70, seed=1), some_ids(3, seed=2), some_ids(129, seed=3)]
    with flashmoe.load(tiny, cache=0, readers=READERS) as model:
        alone = [transcript(model, prompt, 12) for prompt in prompts]
        sessions = [model.session() for _ in prompts]
        logits = [s.feed(prompt) for s, prompt in zip(sessions, prompts, strict=True)]
        for step in range(12):
            for n, session in enumerate(sessions):
                logits[n] = session.step(int(logits[n].argmax()))
                np.testing.assert_array_equal(logits[n], alone[n].steps[step])


def test_models_open_at_once_do_not_disturb_each_other(tiny: Path) -> None:
    scalar, best = run(tiny, isa="scalar"), run(tiny, isa="auto")
    with (
        flashmoe.load(tiny, cache=0, readers=READERS, isa="auto") as one,
        flashmoe.load(tiny, isa="scalar") as other,
    ):
        assert_same_bits(transcript(one, PROMPT, STEPS), best)
        assert_same_bits(transcript(other, PROMPT, STEPS), scalar)
        assert_same_bits(transcript(one, PROMPT, STEPS), best)
        assert (one.stats.isa, other.stats.isa) == (_native.available_isas()[-1], "scalar")


def test_models_run_in_threads_of_their_own(tiny: Path, expected: Transcript) -> None:
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda cache: run(tiny, cache=cache), [0, "auto", "all"]):
            assert_same_bits(result, expected)


@pytest.mark.parametrize("k", [1, 3])
def test_fewer_experts_per_token(tiny: Path, expected: Transcript, k: int) -> None:
    fewer = run(tiny, experts_per_token=k, cache=0)
    assert_same_bits(run(tiny, experts_per_token=k, cache="all"), fewer)
    assert np.abs(fewer.prompt - expected.prompt).max() > 0
    with flashmoe.load(tiny, experts_per_token=k, cache=0) as model:
        model.logits([7])
        layers = len(PackedModel.open(tiny).manifest.layers)
        assert model.stats.cache_misses == k * layers
        assert (model.stats.experts_per_token, model.stats.native_experts_per_token) == (k, K)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 128, 129])
def test_what_follows_does_not_change_a_row(
    tiny: Path, family: str, expected: Transcript, length: int
) -> None:
    """The delta rule takes whole blocks of 64 together, so there only at their ends."""
    if family == "qwen3_5_moe" and length % 64:
        length = length // 64 * 64 or 64
    with flashmoe.load(tiny, cache=0) as model:
        logits = model.session().feed(PROMPT[:length])
    np.testing.assert_array_equal(logits, expected.prompt[length - 1])


@pytest.mark.parametrize("chunk", [64, 128])
def test_how_a_prompt_is_cut_does_not_show(tiny: Path, chunk: int) -> None:
    """Not of one that goes on off the multiples of 64, either."""
    ids = some_ids(200)
    with flashmoe.load(tiny) as model:

        def logits(chunk: int) -> Floats:
            session = model.session()
            parts = (ids[:37], ids[37:199], ids[199:])
            return np.concatenate([session.feed_all(part, chunk=chunk) for part in parts])

        assert np.array_equal(logits(chunk), logits(192))
