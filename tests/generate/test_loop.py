from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from flashmoe.demo import demo_model_path
from flashmoe.errors import ContextLengthError, NumericError, UsageError
from flashmoe.generate.loop import Piece, generate
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.text.tokenizer import Tokenizer
from tests.support.scripted_model import END, VOCAB, ScriptedEngine
from tests.support.tolerances import LOGPROB_ATOL

TOKENIZER = Tokenizer(demo_model_path())
PROMPT = [10, 11, 12, 13, 14]


def run(engine: ScriptedEngine, **options: Any) -> list[Piece]:
    return list(generate(engine, PROMPT, SamplingOptions(**options), TOKENIZER, {END}))


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_stop_token_ends_the_answer_and_is_not_shown() -> None:
    script = TOKENIZER.encode("Hello you")
    pieces = run(ScriptedEngine(script))
    assert text_of(pieces) == "Hello you"
    assert [piece.token_id for piece in pieces] == [*script, END]
    assert [piece.finish_reason for piece in pieces] == [None] * len(script) + ["stop"]


def test_each_token_is_fed_once_and_the_last_not_at_all() -> None:
    script = TOKENIZER.encode("Hello you")
    engine = ScriptedEngine(script)
    run(engine)
    assert engine.fed == [PROMPT, *([id] for id in script)]


def test_logprob_is_that_of_the_token() -> None:
    first = run(ScriptedEngine([67]))[0]
    assert first.logprob == pytest.approx(-np.log1p((VOCAB - 1) * np.exp(-20.0)), abs=LOGPROB_ATOL)


def test_max_tokens_ends_with_length() -> None:
    engine = ScriptedEngine(TOKENIZER.encode("one two three four"))
    pieces = run(engine, max_tokens=2)
    assert len(pieces) == 2
    assert pieces[-1].finish_reason == "length"
    assert len(engine.fed) == 2


def test_a_stop_token_on_the_last_place_is_a_stop() -> None:
    assert run(ScriptedEngine([]), max_tokens=1)[-1].finish_reason == "stop"


def test_a_full_context_ends_with_length() -> None:
    engine = ScriptedEngine([67] * 50, context_length=8)
    pieces = run(engine)
    assert engine.position == 8
    assert len(pieces) == 4  # three that fit behind the prompt, and one that need not be fed
    assert pieces[-1].finish_reason == "length"


def test_a_prompt_that_fills_the_context_still_gets_one_token() -> None:
    assert len(run(ScriptedEngine([67] * 50, context_length=5))) == 1


def test_stop_strings_cut_the_text() -> None:
    pieces = run(ScriptedEngine(TOKENIZER.encode("one two three four")), stop=["thr", "zzz"])
    assert text_of(pieces) == "one two "
    assert pieces[-1].finish_reason == "stop_string"


def test_a_held_beginning_of_a_stop_string_is_shown_at_the_end() -> None:
    pieces = run(ScriptedEngine(TOKENIZER.encode("one tw")), stop=["two"])
    assert text_of(pieces) == "one tw"
    assert pieces[-1].finish_reason == "stop"


def test_a_character_cut_by_max_tokens_is_a_replacement() -> None:
    ids = TOKENIZER.encode("𝄞")
    pieces = run(ScriptedEngine(ids), max_tokens=len(ids) - 1)
    assert text_of(pieces) == "\ufffd"


def test_a_stop_string_completed_by_the_flush_is_not_shown() -> None:
    pieces = run(ScriptedEngine(TOKENIZER.encode("𝄞")[:1]), stop=["\ufffd"])
    assert text_of(pieces) == ""
    assert pieces[-1].finish_reason == "stop_string"


def test_prefill_runs_in_chunks_and_reports_progress() -> None:
    engine, seen = ScriptedEngine([67]), []
    options = SamplingOptions()
    pieces = generate(
        engine, PROMPT, options, TOKENIZER, {END}, lambda *step: seen.append(step), chunk=2
    )
    assert seen == []
    list(pieces)
    assert engine.fed[:3] == [[10, 11], [12, 13], [14]]
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


def test_progress_within_a_chunk() -> None:
    class Telling(ScriptedEngine):
        def feed(self, ids: Sequence[int], on_progress: Any = None) -> Any:
            if on_progress is not None:
                on_progress(1)
                on_progress(len(ids))
            return super().feed(ids)

    seen: list[tuple[int, int]] = []
    see = lambda *step: seen.append(step)  # noqa: E731
    list(generate(Telling([67]), PROMPT, SamplingOptions(), TOKENIZER, {END}, see, chunk=3))
    assert seen == [(0, 5), (1, 5), (3, 5), (4, 5), (5, 5)]


def test_sampling_is_timed() -> None:
    names: list[str] = []

    @contextmanager
    def phase(name: str) -> Any:
        names.append(name)
        yield

    options = SamplingOptions()
    list(generate(ScriptedEngine([67]), PROMPT, options, TOKENIZER, {END}, phase=phase))
    assert names == ["sampling", "sampling"]


def test_repeat_penalty_sees_prompt_and_answer() -> None:
    class WithRunnerUp(ScriptedEngine):
        def feed(self, ids: Sequence[int], on_progress: Any = None) -> Any:
            logits = super().feed(ids, on_progress)
            logits[99] = 1
            return logits

    def tokens(script: list[int]) -> list[int]:
        return [p.token_id for p in run(WithRunnerUp(script), max_tokens=2, repeat_penalty=100)]

    assert tokens([10, 67]) == [99, 67]
    assert tokens([67, 67]) == [67, 99]


def test_an_empty_prompt_is_refused_at_once() -> None:
    engine = ScriptedEngine([67])
    with pytest.raises(UsageError, match="prompt: the prompt is empty"):
        generate(engine, [], SamplingOptions(), TOKENIZER, {END})
    assert engine.fed == []


def test_a_prompt_past_the_context_is_refused_with_both_numbers() -> None:
    engine = ScriptedEngine([67], context_length=4)
    with pytest.raises(ContextLengthError, match=r"expected at most 4 tokens, got 5"):
        generate(engine, PROMPT, SamplingOptions(), TOKENIZER, {END})


def test_what_was_fed_before_counts() -> None:
    engine = ScriptedEngine([67], context_length=8)
    engine.feed([1, 2, 3, 4])
    with pytest.raises(ContextLengthError, match=r"at most 4 tokens, got 5"):
        generate(engine, PROMPT, SamplingOptions(), TOKENIZER, {END})


def test_closing_leaves_the_engine_after_the_last_whole_feed() -> None:
    engine = ScriptedEngine([67, 68, 69])
    pieces = generate(engine, PROMPT, SamplingOptions(), TOKENIZER, {END})
    assert next(pieces).token_id == 67
    pieces.close()
    assert engine.position == len(PROMPT)
    assert list(pieces) == []


def test_an_interrupt_passes_through_and_ends_the_iterator() -> None:
    def interrupt(ids: Sequence[int]) -> None:
        if ids == [68]:
            raise KeyboardInterrupt

    engine = ScriptedEngine([67, 68, 69], on_feed=interrupt)
    pieces = generate(engine, PROMPT, SamplingOptions(), TOKENIZER, {END})
    assert [next(pieces).token_id, next(pieces).token_id] == [67, 68]
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    assert engine.position == len(PROMPT) + 1
    assert list(pieces) == []


def test_logits_that_are_not_finite_stop_the_run() -> None:
    class Broken(ScriptedEngine):
        def feed(self, ids: Sequence[int], on_progress: Any = None) -> Any:
            return super().feed(ids, on_progress) * np.float32(np.nan)

    with pytest.raises(NumericError):
        run(Broken([67]))
