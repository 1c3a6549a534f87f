"""Traces that the engine recorded: read back, damaged, replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flashmoe
from flashmoe.bench.recorded import read_recorded
from flashmoe.bench.replay import replay, replay_all
from flashmoe.bench.trace_summary import summarize
from flashmoe.bench.traces import Trace, read_trace, trace_of
from flashmoe.errors import UsageError
from flashmoe.experts import trace_format as fmt
from flashmoe.experts.tracing import TraceFile, TraceRecorder
from flashmoe.layers.state import Batch, Segment, SequenceState
from flashmoe.routing import RoutingOptions
from tests.support.packs import TinyPacks, some_ids
from tests.support.serving import ask, run_all, scheduler_of

EXPERTS, K, LAYERS = 6, 2, (1, 3)
RULES = ["k=2", "mass=0.6", "ratio=0.5", "per_layer=2/1", "margin=0.7,sacred=1", "skip=1.0"]


def header(**changes: Any) -> fmt.TraceHeader:
    fields: dict[str, Any] = {
        "flashmoe": "0",
        "model": "tiny",
        "family": "qwen3_moe",
        "identity": "00",
        "num_experts": EXPERTS,
        "num_experts_per_tok": K,
        "layers": LAYERS,
        "expert_bytes": (100, 200),
        "router": fmt.TraceRouter("softmax"),
        "lossy": "",
        "cache_slots": 4,
        "parallel": 1,
    }
    return fmt.TraceHeader(**fields | changes)


def batch_of(spans: list[tuple[int, int]]) -> Batch:
    segments, begin = [], 0
    for start, tokens in spans:
        segments.append(Segment(SequenceState(999, [], start), begin, begin + tokens))
        begin += tokens
    return Batch(np.zeros(begin, dtype=np.int32), tuple(segments))


def write(path: Path, passes: list[list[tuple[int, int]]], seed: int = 0) -> list[Any]:
    """Records random scores for passes of (start, tokens) spans -> (layer, ids, scores) each."""
    rng, noted = np.random.default_rng(seed), []
    recorder = TraceRecorder(TraceFile(path, header()), lambda: (4, 5, 6))
    for spans in passes:
        batch = batch_of(spans)
        with recorder.watch(batch):
            for layer in LAYERS:
                scores = rng.dirichlet(np.ones(EXPERTS), len(batch.ids)).astype(np.float32)
                ids = np.argsort(-scores, axis=1)[:, :K].astype(np.int32)
                recorder.note(layer, ids, (scores[n : n + 64] for n in range(0, len(ids), 64)))
                noted.append((layer, ids, scores))
    recorder.close()
    recorder.close()
    return noted


SPANS = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 90)), min_size=1, max_size=3)


@settings(deadline=None, max_examples=30)
@given(passes=st.lists(SPANS, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_what_was_recorded_is_read(
    tmp_path_factory: pytest.TempPathFactory, passes: list[list[tuple[int, int]]], seed: int
) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace"
    noted = write(path, passes, seed)
    found = read_recorded(path)
    assert found.header == header()
    assert [facts.spans for facts in found.passes.values()] == [tuple(spans) for spans in passes]
    assert (found.cut_bytes, found.last) == (0, (5, 6))
    for (layer, ids, scores), got in zip(noted, found.layers, strict=True):
        assert got.layer == layer
        np.testing.assert_array_equal(np.concatenate([rows.ids for rows in got.rows]), ids)
        np.testing.assert_array_equal(np.concatenate([rows.scores for rows in got.rows]), scores)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "trace"
    write(path, [[(0, 3)], [(3, 1)], [(4, 1)]])
    return path.read_bytes()


FUZZ = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_cut_anywhere_the_records_before_are_read(
    tmp_path: Path, whole: bytes, data: st.DataObject
) -> None:
    (tmp_path / "whole").write_bytes(whole)
    full = read_recorded(tmp_path / "whole")
    end_of_header = whole.index(b"\n", len(fmt.MAGIC)) + 1
    cut = data.draw(st.integers(end_of_header, len(whole)))
    (tmp_path / "cut").write_bytes(whole[:cut])
    found = read_recorded(tmp_path / "cut")
    assert 0 <= found.cut_bytes <= cut - end_of_header
    assert (found.cut_bytes == 0) == (cut - found.cut_bytes == cut)
    shown = [(one.layer, one.facts) for one in found.layers]
    assert shown == [(one.layer, one.facts) for one in full.layers][: len(shown)]


@pytest.mark.parametrize("length", [0, 1, 16, 17, 40])
def test_without_a_whole_header_it_is_no_trace(tmp_path: Path, whole: bytes, length: int) -> None:
    (tmp_path / "trace").write_bytes(whole[:length])
    with pytest.raises(UsageError):
        read_trace(tmp_path / "trace")


@FUZZ
@given(data=st.data())
def test_damage_is_a_typed_error(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    """Any byte changed: refused, or where a length grew at the very end, taken for a cut."""
    at = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != whole[at]))
    (tmp_path / "trace").write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    end_of_header = whole.index(b"\n", len(fmt.MAGIC)) + 1
    try:
        found = read_trace(tmp_path / "trace")
    except UsageError:
        return
    assert at < end_of_header or (found.recorded and found.recorded.cut_bytes > 0)


@FUZZ
@given(junk=st.binary(max_size=300))
def test_junk_after_the_header_is_a_typed_error(tmp_path: Path, whole: bytes, junk: bytes) -> None:
    start = whole[: whole.index(b"\n", len(fmt.MAGIC)) + 1]
    (tmp_path / "trace").write_bytes(start + junk)
    with pytest.raises(UsageError):
        read_trace(tmp_path / "trace")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"num_experts": 6', b'"num_experts": 0'),
        (b'"num_experts": 6', b'"num_experts": "6"'),
        (b'"layers": [1, 3]', b'"layers": [1, 1]'),
        (b'"layers": [1, 3]', b'"layers": 3'),
        (b'"groups": 1', b'"groups": 4'),
        (b'"kind": "softmax"', b'"kind": "sigmoid"'),
        (b'"lossy": ""', b'"lossy": 1'),
        (b'"scores": "float32"', b'"scores": "float16"'),
        (b'"model"', b'"more": 1, "model"'),
        (b'"model"', b'"modal"'),
        (b"}\n", b"\n"),
    ],
)
def test_a_header_of_another_shape(tmp_path: Path, whole: bytes, old: bytes, new: bytes) -> None:
    assert old in whole
    (tmp_path / "trace").write_bytes(whole.replace(old, new, 1))
    with pytest.raises(UsageError):
        read_recorded(tmp_path / "trace")


@pytest.mark.parametrize(
    "record",
    [
        fmt.rows_record(9, 1, np.zeros((1, K), np.uint16), np.zeros((1, EXPERTS), np.float32)),
        fmt.rows_record(0, 2, np.zeros((1, K), np.uint16), np.zeros((1, EXPERTS), np.float32)),
        fmt.rows_record(0, 1, np.full((1, K), 6, np.uint16), np.zeros((1, EXPERTS), np.float32)),
        fmt.rows_record(0, 1, np.zeros((1, K), np.uint16), np.full((1, EXPERTS), np.nan)),
        fmt.rows_record(0, 1, np.zeros((0, K), np.uint16), np.zeros((0, EXPERTS), np.float32)),
        fmt.pass_record(fmt.PassFacts(0, 1, 1, 1, ((0, 1),))),
        fmt.pass_record(fmt.PassFacts(7, 1, 1, 1, ())),
        fmt.record(b"WHAT", b"1234"),
        fmt.record(fmt.DONE, b"1234"),
    ],
    ids=["pass", "layer", "id", "nan", "empty", "twice", "no span", "kind", "short"],
)
def test_whole_records_that_say_nothing_true(tmp_path: Path, whole: bytes, record: bytes) -> None:
    (tmp_path / "trace").write_bytes(whole + record)
    with pytest.raises(UsageError, match=rf"byte {len(whole)} is no part of a trace"):
        read_recorded(tmp_path / "trace")


# Replays.


def hits_of_a_run(pack: Path, trace: Path, routing: str, **settings: Any) -> tuple[int, int]:
    """A prompt, then decode steps -> hits and misses that the engine counted."""
    with flashmoe.load(pack, trace=trace, routing=routing, **settings) as model:
        session = model.session()
        session.feed(some_ids(40))
        for id in some_ids(60, seed=1):
            session.step(id)
        return model.stats.cache_hits, model.stats.cache_misses


def all_hits(trace: Trace, slots: int, options: RoutingOptions) -> tuple[int, int]:
    found = replay(trace, slots, "lfru", options)
    return found.hits + found.prefill_hits, found.misses + found.prefill_misses


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gemma4"])
@pytest.mark.parametrize("cache", ["30%", "60%", "all"])
@pytest.mark.parametrize("prefetch", ["on", "off"])
def test_a_replay_hits_as_often_as_the_engine_did(
    tiny_packs: TinyPacks, tmp_path: Path, family: str, cache: str, prefetch: str
) -> None:
    path = tmp_path / "trace"
    counted = hits_of_a_run(tiny_packs.get(family), path, "", cache=cache, prefetch=prefetch)
    trace = read_trace(path)
    assert trace.recorded is not None
    assert trace.recorded.last == counted
    slots = trace.recorded.header.cache_slots
    assert {facts.slots for facts in trace.recorded.passes.values()} == {slots}
    assert all_hits(trace, slots, RoutingOptions()) == counted


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("rules", RULES)
def test_a_replay_under_rules_chooses_as_the_engine_did(
    tiny_packs: TinyPacks, tmp_path: Path, family: str, rules: str
) -> None:
    """Recorded under rules, and replayed under them from the scores alone."""
    path, pack = tmp_path / "trace", tiny_packs.get(family)
    with flashmoe.load(pack) as model:
        layers = len(model.session().engine.decoder.routers())
    rules = rules if "per_layer" not in rules else "per_layer=" + "/".join("21"[:1] * layers)
    counted = hits_of_a_run(pack, path, rules, cache="60%")
    trace, options = read_trace(path), RoutingOptions.parse(rules)
    assert trace.recorded is not None
    slots = trace.recorded.header.cache_slots
    assert all_hits(trace, slots, RoutingOptions()) == counted  # its own ids
    assert all_hits(trace, slots, options) == counted  # what the rules make of the scores


def test_sequences_beside_each_other(tiny_packs: TinyPacks, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with flashmoe.load(tiny_packs.get("qwen3_moe"), trace=path, parallel=3, cache="60%") as model:
        requests = [ask(some_ids(n, n), tokens=9) for n in (3, 40, 60)]
        run_all(scheduler_of(model, 3, gap=0.0), requests, apart=1)
        counted = model.stats.cache_hits, model.stats.cache_misses
    trace = read_trace(path)
    assert trace.recorded is not None
    assert all_hits(trace, trace.recorded.header.cache_slots, RoutingOptions()) == counted


@pytest.fixture(scope="module")
def trace(tiny_packs: TinyPacks, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("replays") / "trace"
    hits_of_a_run(tiny_packs.get("qwen3_moe"), path, "", cache="50%")
    return read_trace(path)


def test_all_of_the_mass_is_kept_without_rules(trace: Trace) -> None:
    found = replay(trace, 16, "lru")
    assert (found.mass, found.experts) == (1.0, 4.0)


def test_fewer_experts_keep_less_and_read_less(trace: Trace) -> None:
    full, three, one = (
        replay(trace, 16, "lru", RoutingOptions.parse(rule)) for rule in ("", "k=3", "k=1")
    )
    assert full.mass is not None
    assert three.mass is not None
    assert one.mass is not None
    assert full.mass > three.mass > one.mass > 0.25
    assert (three.experts, one.experts) == (3.0, 1.0)
    assert full.bytes_per_token is not None
    assert one.bytes_per_token is not None
    assert one.bytes_per_token < full.bytes_per_token


def test_what_is_in_memory_is_preferred(trace: Trace) -> None:
    plain = replay(trace, 12, "lru")
    near = replay(trace, 12, "lru", RoutingOptions(margin=0.9, sacred=1))
    assert near.hits > plain.hits
    assert near.mass is not None
    assert near.mass < 1


def test_the_optimum_is_the_best_also_of_prompts_wider_than_the_cache(trace: Trace) -> None:
    found = {one.policy: one for one in replay_all(trace, [8])}
    assert found["belady"].hits == max(one.hits for one in found.values())


def test_the_optimum_cannot_be_where_rules_look_at_the_cache(trace: Trace) -> None:
    rules = [RoutingOptions(margin=0.5), RoutingOptions(mass=0.5)]
    found = {(one.routing, one.policy) for one in replay_all(trace, [8], rules=rules)}
    assert ("mass=0.5", "belady") in found
    assert ("margin=0.5,sacred=2", "belady") not in found
    with pytest.raises(UsageError, match="the optimum is unknown"):
        replay(trace, 8, "belady", rules[0])


@pytest.mark.parametrize(
    ("rules", "message"),
    [("k=5", "at most 4, the model's own"), ("per_layer=1/1/1", "expected 2 counts")],
)
def test_rules_that_do_not_fit_the_model(trace: Trace, rules: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replay(trace, 16, "lru", RoutingOptions.parse(rules))


def test_ids_alone_answer_no_rule(tmp_path: Path) -> None:
    (tmp_path / "ids.jsonl").write_text('{"tok": 1, "layers": [[3, 1], [0, 2]]}\n')
    with pytest.raises(UsageError, match="the trace has no router probabilities"):
        replay(read_trace(tmp_path / "ids.jsonl"), 4, "lru", RoutingOptions(mass=0.5))


def test_a_summary_by_hand(tmp_path: Path) -> None:
    """One layer, experts 0 1 then 1 2 then, of another sequence, 4 5."""
    recorder = TraceRecorder(
        TraceFile(tmp_path / "trace", header(layers=(1,), expert_bytes=(100,))), lambda: (4, 5, 7)
    )
    scores = np.full((1, EXPERTS), 0.125, dtype=np.float32)
    for start, ids in ((0, (0, 1)), (1, (1, 2)), (0, (4, 5))):
        with recorder.watch(batch_of([(start, 1)])):
            recorder.note(1, np.array([ids], dtype=np.int32), [scores])
    recorder.close()
    found = summarize(trace_of(read_recorded(tmp_path / "trace")))
    assert (found.tokens, found.decoded, found.layers, found.used) == (3, 1, 1, 2.0)
    assert found.overlap == 0.5  # of the second token alone
    assert found.busiest == pytest.approx(2 / 6)
    assert found.top[0] == (1, 1, pytest.approx(2 / 3))
    assert found.mass == pytest.approx(1 / 3)
    assert (found.hits, found.misses) == (5, 7)
