"""A model that answers what the test says, with the surface of flashmoe's own.

The real tokenizer, template and token loop of the package; only the arithmetic is made up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.demo import demo_model_path
from flashmoe.generate.loop import Piece, Progress, generate
from flashmoe.generate.prompt import Prompt, prompt_ids
from flashmoe.generate.sampling import SamplingOptions
from flashmoe.stats import Stats
from flashmoe.text.chat_template import ChatTemplate
from flashmoe.text.stop_tokens import stop_ids
from flashmoe.text.tokenizer import Tokenizer

VOCAB = 8192
END = 2


class ScriptedEngine:
    """Its logits make the next token of `script` the likeliest, whatever is fed.

    prompt_tokens: the script begins with the feed that brings the position to this.
    on_feed: called with the ids of each feed before it counts; may raise or sleep.
    """

    def __init__(
        self,
        script: Sequence[int],
        context_length: int = 4096,
        prompt_tokens: int = 0,
        on_feed: Callable[[Sequence[int]], None] = lambda ids: None,
    ) -> None:
        self._script = iter([*script, END])
        self._prompt_tokens, self._on_feed = prompt_tokens, on_feed
        self.context_length = context_length
        self.fed: list[list[int]] = []

    @property
    def position(self) -> int:
        return sum(map(len, self.fed))

    def feed(
        self, ids: Sequence[int], on_progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        assert 0 < len(ids) <= self.context_length - self.position
        self._on_feed(ids)
        self.fed.append(list(ids))
        answering = self.position >= self._prompt_tokens
        return peaked(next(self._script, END) if answering else END)

    def step(self, id: int) -> NDArray[np.float32]:
        return self.feed([id])


def peaked(token: int) -> NDArray[np.float32]:
    """Logits [VOCAB] in which `token` is far ahead."""
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[token] = 20
    return logits


class ScriptedModel:
    """Answers `reply` to everything; each feed takes `delay` seconds."""

    def __init__(self, reply: str, stats: Stats, delay: float = 0.0, chunk: int = 64) -> None:
        directory = demo_model_path()
        self.tokenizer = Tokenizer(directory)
        self.chat_template = ChatTemplate(directory)
        self.stop_ids = stop_ids(directory, self.tokenizer, self.chat_template)
        self.stats = stats
        self.context_length = 4096
        self.closed = False
        self.prompt: list[int] = []
        self.options = SamplingOptions()
        self._reply, self._delay, self._chunk = reply, delay, chunk

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[dict[str, Any]] | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        on_progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        self.prompt = prompt_ids(
            self.tokenizer, self.chat_template, prompt, messages=messages, tools=tools
        )
        self.options = SamplingOptions(**options)
        script = self.tokenizer.encode(self._reply)
        engine = ScriptedEngine(
            script,
            self.context_length,
            len(self.prompt),
            on_feed=lambda ids: time.sleep(self._delay),
        )
        return generate(
            engine,
            self.prompt,
            self.options,
            self.tokenizer,
            self.stop_ids,
            on_progress,
            chunk=self._chunk,
        )

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> ScriptedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def sample_stats(**changes: Any) -> Stats:
    """Stats of a plausible run."""
    phases = {"attention": 0.2, "disk_wait": 0.6, "experts": 0.15, "head": 0.04, "python": 0.01}
    figures: dict[str, Any] = {
        "prompt_tokens": 30,
        "decode_tokens": 10,
        "prefill_seconds": 0.5,
        "decode_seconds": 1.0,
        "time_to_first_token": 0.51,
        "phase_seconds": phases,
        "prefill_phase_seconds": {"attention": 0.1, "experts": 0.4},
        "cache_hits": 75,
        "cache_misses": 25,
        "bytes_read": 1_500_000_000,
        "peak_rss": 250_000_000,
        "num_layers": 8,
        "experts_per_token": 8,
        "native_experts_per_token": 8,
    }
    return Stats(**(figures | changes))


class Loader:
    """Stands in for flashmoe.load: records its arguments and hands out one scripted model."""

    def __init__(self, model: ScriptedModel) -> None:
        self.model = model
        self.path: str | Path | None = None
        self.options: dict[str, Any] = {}

    def __call__(self, path: str | Path | None = None, **options: Any) -> ScriptedModel:
        self.path, self.options = path, options
        return self.model
