"""The public surface on the demo model: what it yields, what it refuses, what it counts."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe import _native, api
from flashmoe.api import Model
from flashmoe.bench.routing import RoutingRecorder
from flashmoe.demo import demo_model_path
from flashmoe.errors import ContextLengthError, PackError, UsageError
from flashmoe.evals.tool_calls import first_call
from flashmoe.generate.loop import Piece
from flashmoe.loading import load_model
from flashmoe.settings import EngineSettings
from flashmoe.stats import PHASES
from tests.support.tolerances import LOGPROB_ATOL

CONTEXT = 128
QUESTION = [{"role": "user", "content": "What is the capital of Italy?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with flashmoe.load(context_length=CONTEXT) as model:
        yield model


def text_of(pieces: Iterator[Piece] | list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


# Loading and closing.


def test_public_names_resolve_and_are_documented() -> None:
    assert sorted(flashmoe.__all__) == dir(flashmoe)
    for name in flashmoe.__all__:
        value = getattr(flashmoe, name)
        assert name == "__version__" or value.__doc__, name


def test_what_a_model_says_of_itself(model: Model) -> None:
    assert model.family == "qwen3_5_moe"
    assert model.config.num_experts == 64
    assert model.context_length == CONTEXT
    assert model.path.name == "demo_model"
    assert model.stop_ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bogus": 1}, "load: unknown setting; expected ram, cache, .* got bogus"),
        ({"threads": 0}, "threads: wrong value"),
        ({"threads": "2"}, "threads: wrong value"),
        ({"threads": 10**30}, "threads: wrong value; expected an integer from 1 to 1024"),
        ({"readers": 1025}, "readers: wrong value; expected an integer from 1 to 1024"),
        ({"readers": 0}, "readers: wrong value"),
        ({"context_length": 5000}, "context_length: longer than the model's context"),
        ({"experts_per_token": 9}, "experts_per_token: more experts than .*expected 1 to 8, got 9"),
        ({"experts_per_token": 0}, "experts_per_token: wrong value"),
        ({"isa": "avx1024"}, r"isa: .*expected auto \| scalar.*got avx1024"),
        ({"verify": "maybe"}, "verify: unknown choice"),
        ({"routing": "mass"}, "routing: not a number; expected numbers, as mass=0.9, got mass"),
        ({"routing": "mass=0.9,mass=0.5"}, "routing: a rule is given twice"),
        ({"routing": "k=2", "experts_per_token": 3}, "experts_per_token, routing: .* 3 and k=2"),
        ({"ram": "much"}, "--ram: not a size"),
        ({"cache": "some"}, "--cache: not a size"),
        ({"cache": -1}, "--cache: smaller than what one step needs"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        flashmoe.load(**settings)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"routing": "mass=0.9"}, "routing"),
        ({"trace": "never-made"}, "trace"),
        ({"parallel": 2}, "parallel"),
        ({"prefix_ram": "1G"}, "prefix_ram"),
    ],
)
def test_what_a_card_refuses_before_torch_comes_in(
    settings: dict[str, Any], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_settled", lambda path, wanted: ("cuda", "asked for"))
    with pytest.raises(UsageError, match=f"^{where}: a card .*Use --device cpu, or leave it out"):
        flashmoe.load(**settings)
    assert not Path("never-made").exists()


def test_threads_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(threads: int) -> Any:
        raise RuntimeError("Resource temporarily unavailable")

    message = "^{}: the system does not give these threads: Resource .*got 7.*ulimit -u"
    with pytest.raises(UsageError, match=message.format("readers")):
        load_model(demo_model_path(), EngineSettings(readers=7), make_reader=refuse)
    monkeypatch.setattr(_native, "Pool", refuse)
    with pytest.raises(UsageError, match=message.format("threads")):
        flashmoe.load(threads=7)


def open_expert_files() -> int:
    targets = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return sum("demo_model/experts" in target for target in targets)


def test_a_load_that_fails_closes_the_files_of_experts(tmp_path: Path) -> None:
    """Even while somebody holds the error, and with it the frames of the load."""
    taken, before = tmp_path / "trace", open_expert_files()
    taken.touch()
    with pytest.raises(UsageError, match="there is a file of this name") as error:
        flashmoe.load(trace=taken)
    assert open_expert_files() == before
    assert error.value.where == taken


def test_a_closed_model_refuses_and_lets_its_memory_go() -> None:
    with flashmoe.load(context_length=CONTEXT) as model:
        session = model.session()
        session.feed([1])
        pieces = model.generate("Once upon a time", max_tokens=20)
        next(pieces)
        weights = weakref.ref(session.engine.decoder)
    with pytest.raises(UsageError, match="demo_model: the model is closed"):
        model.logits([1])
    with pytest.raises(UsageError, match="the model is closed"):
        model.generate("a")
    with pytest.raises(UsageError, match="session: the model is closed"):
        session.step(1)
    with pytest.raises(UsageError, match="the model is closed"):
        list(pieces)
    model.close()
    assert weights() is None
    assert model.stats.prompt_tokens > 0
    assert model.family == "qwen3_5_moe"


def test_a_pack_without_tokenizer_takes_ids_only(tiny_packs: Any) -> None:
    with flashmoe.load(tiny_packs.get("qwen3_moe")) as model:
        with pytest.raises(PackError, match=r"tokenizer\.json: the pack has no tokenizer"):
            model.generate([1, 2])
        assert model.session().feed([1, 2]).shape == (300,)


# Generating.


def test_pieces_of_a_chat(model: Model) -> None:
    pieces = list(model.generate(messages=QUESTION, max_tokens=40))
    assert text_of(pieces) == "The capital of Italy is Rome."
    assert pieces[-1].finish_reason == "stop"
    assert {piece.finish_reason for piece in pieces[:-1]} == {None}
    assert model.tokenizer.decode([p.token_id for p in pieces]) == text_of(pieces)


def test_text_and_ids_are_the_same_prompt(model: Model) -> None:
    text = list(model.generate("Once upon a time", max_tokens=8))
    ids = model.tokenizer.encode("Once upon a time")
    assert list(model.generate(ids, max_tokens=8)) == text
    assert list(model.generate(np.array(ids), max_tokens=8)) == text


def test_logprobs_are_those_of_logits(model: Model) -> None:
    prompt = model.tokenizer.encode("Once upon a time")
    pieces = list(model.generate(prompt, max_tokens=12))
    assert len(pieces) == 12
    ids = [piece.token_id for piece in pieces]
    rows = model.logits(prompt + ids)[len(prompt) - 1 : -1].astype(np.float64)
    expected = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    for row, piece in zip(expected, pieces, strict=True):
        assert piece.logprob == pytest.approx(row[piece.token_id], abs=LOGPROB_ATOL)


def test_a_seed_repeats_an_answer(model: Model) -> None:
    def sample(seed: int) -> str:
        return text_of(model.generate("Once upon", max_tokens=15, temperature=1.0, seed=seed))

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_sampling_from_one_token_is_greedy(model: Model) -> None:
    greedy = list(model.generate("Once upon", max_tokens=10))
    assert list(model.generate("Once upon", max_tokens=10, temperature=2.0, top_k=1)) == greedy


def test_a_stop_string_is_not_shown(model: Model) -> None:
    pieces = list(model.generate(messages=QUESTION, stop=["Italy"]))
    assert text_of(pieces) == "The capital of "
    assert pieces[-1].finish_reason == "stop_string"


def test_tools_reach_the_template(model: Model) -> None:
    messages = [{"role": "user", "content": "What is the weather in Rome?"}]
    with flashmoe.load(context_length=512) as roomy:
        reply = text_of(roomy.generate(messages=messages, tools=[WEATHER], max_tokens=60))
        with_tools = roomy.stats.prompt_tokens
        next(roomy.generate(messages=messages))
        assert with_tools > roomy.stats.prompt_tokens
    assert first_call(reply) is not None, reply
    with pytest.raises(UsageError, match="tools need messages"):
        model.generate("a", tools=[WEATHER])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"prompt": ""}, UsageError, "the prompt is empty"),
        ({"prompt": []}, UsageError, "the prompt is empty"),
        ({}, UsageError, "either a prompt or messages"),
        ({"prompt": "a", "messages": QUESTION}, UsageError, "either a prompt or messages"),
        ({"prompt": "a", "bogus": 1}, UsageError, "unknown sampling option; .*got bogus"),
        ({"prompt": "a", "max_tokens": 0}, UsageError, "max_tokens: wrong value"),
        ({"prompt": [-1]}, UsageError, r"prompt\[0\]: not a token id"),
        ({"prompt": [1, "a"]}, UsageError, r"prompt\[1\]: not a token id"),
        (
            {"prompt": [1] * (CONTEXT + 1)},
            ContextLengthError,
            "at most 128 tokens, got 129",
        ),
        ({"messages": []}, UsageError, "messages"),
    ],
)
def test_prompts_that_are_refused_before_any_work(
    model: Model, arguments: dict[str, Any], kind: type[UsageError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        model.generate(**arguments)


@pytest.mark.parametrize("ids", [[8192], [1, -1], [2**70], [1.5], ["a"], [[1, 2]]])
def test_ids_outside_the_vocabulary(model: Model, ids: list[Any]) -> None:
    where = rf"prompt\[{len(ids) - 1}\]: token id outside the vocabulary; expected .* 0 to 8191"
    session = model.session()
    with pytest.raises(UsageError, match=where):
        session.feed(ids)
    with pytest.raises(UsageError, match=where):
        model.logits(ids)
    assert session.feed([1]).shape == (8192,)  # refused before any work: it goes on


def test_the_end_of_the_context(model: Model) -> None:
    prompt = [5] * (CONTEXT - 3)
    pieces = list(model.generate(prompt, max_tokens=50))
    assert len(pieces) == 4
    assert pieces[-1].finish_reason == "length"
    assert len(list(model.generate([5] * CONTEXT, max_tokens=50))) == 1
    session = model.session()
    session.feed([5] * CONTEXT)
    with pytest.raises(ContextLengthError, match="at most 128 tokens, got 129"):
        session.step(5)
    assert session.position == CONTEXT
    with pytest.raises(ContextLengthError):
        model.logits([5] * (CONTEXT + 1))
    assert model.logits([5] * CONTEXT).shape == (CONTEXT, 8192)


# Counting.


@pytest.mark.parametrize("prompt_tokens", [1, 2, 65])
def test_stats_add_up(model: Model, prompt_tokens: int) -> None:
    session = model.session()
    engine = session.engine
    recorder = RoutingRecorder(engine.experts)
    engine.experts, inner = recorder, engine.experts
    pieces = list(model.generate([7] * prompt_tokens, max_tokens=6))
    engine.experts = inner
    stats = model.stats
    assert stats.prompt_tokens == prompt_tokens
    assert stats.decode_tokens == len(pieces) - 1
    wanted = sum(len(np.unique(ids)) for passes in recorder.ids.values() for ids in passes)
    assert stats.cache_hits + stats.cache_misses == wanted
    assert stats.bytes_read == stats.cache_misses * stats.cache_bytes // stats.cache_slots
    assert sum(stats.phase_seconds.values()) == pytest.approx(stats.decode_seconds)
    assert sum(stats.prefill_phase_seconds.values()) == pytest.approx(stats.prefill_seconds)
    assert {*stats.phase_seconds, *stats.prefill_phase_seconds} <= {*PHASES}
    assert stats.time_to_first_token > 0
    assert stats.prefill_seconds < stats.time_to_first_token
    assert stats.isa == os.environ.get("FLASHMOE_ISA", _native.available_isas()[-1])


def test_the_last_token_of_a_prompt_is_no_decode_step(monkeypatch: pytest.MonkeyPatch) -> None:
    with flashmoe.load(context_length=600) as roomy:
        chunk = 128
        monkeypatch.setattr(roomy.session().engine.memory, "chunk", lambda tokens: chunk)
        seen: list[tuple[int, int]] = []
        ids = [7] * (chunk + 1)
        next(roomy.generate(ids, on_progress=lambda done, total: seen.append((done, total))))
        assert (roomy.stats.prompt_tokens, roomy.stats.decode_tokens) == (chunk + 1, 0)
    # After each layer, and at the ends of chunks.
    layers = roomy.config.num_hidden_layers
    within = [(chunk * layer // layers, chunk + 1) for layer in range(layers)]
    assert seen == [*within, (chunk, chunk + 1), (chunk + 1, chunk + 1)]


def test_stats_are_of_the_latest_call(model: Model) -> None:
    list(model.generate("Once upon a time", max_tokens=6))
    model.logits([1, 2, 3])
    assert (model.stats.prompt_tokens, model.stats.decode_tokens) == (3, 0)
    assert math.isclose(model.stats.decode_seconds, 0)


def test_peak_memory_is_our_own_and_not_the_parents() -> None:
    ballast = np.ones(400 << 20, dtype=np.uint8)
    code = (
        "import flashmoe;"
        "m = flashmoe.load(context_length=64); m.logits([1]); print(m.stats.peak_rss)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 20 << 20 < int(result.stdout) < ballast.nbytes
