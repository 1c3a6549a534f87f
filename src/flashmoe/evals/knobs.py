"""What lossy rules of routing cost and save: the same text, token by token, under each of them.

Every token is a decode step behind the cache of the engine, because some rules depend on what is in
memory: quality, bytes and speed are of the same run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import flashmoe
from flashmoe.evals.divergence import Divergence, Reference
from flashmoe.evals.journal import Journal, digest, key_of
from flashmoe.evals.measure import EvalOptions, tool_row
from flashmoe.evals.paired import paired_difference
from flashmoe.evals.perplexity import Progress, TextScore, token_nll
from flashmoe.evals.runs import context_for, kept_in
from flashmoe.evals.tool_calls import read_cases, score_tool_calls
from flashmoe.library import find_model
from flashmoe.store.model import open_model

if TYPE_CHECKING:
    from flashmoe.api import Model


def measure_knobs(
    path: Path, rules: Sequence[str], options: EvalOptions, progress: Progress
) -> Iterator[dict[str, Any]]:
    """A row per rule (as RoutingOptions.parse takes them), after one of the model as it is ("").

    The reference of kl_mean and delta_nll is the model as it is. What options.directory has of an
    earlier run over the same model, text and settings is not measured again. Raises what
    flashmoe.load raises.
    """
    journal = Journal(options.directory and options.directory / "knobs.jsonl")
    with kept_in(options.directory) as directory:
        run = _Run(find_model(path), options, progress, directory, journal)
        yield from map(run.row, ("", *rules))


@dataclass
class _Run:
    path: Path
    options: EvalOptions
    progress: Progress
    directory: Path
    journal: Journal
    reference: Reference | None = None

    def row(self, rule: str) -> dict[str, Any]:
        """The text's figures under a rule and, where there are cases, those of tool calls."""
        figures = self._once(rule, "text", self._text)
        if self.options.tool_calls is None:
            return figures
        return figures | {"tool_calls": self._once(rule, "calls", self._calls)}

    def _once(self, rule: str, what: str, measure: Any) -> dict[str, Any]:
        key = self._key(rule, what)
        if not rule and what == "text":
            self.reference = Reference.saved(self.directory, key)
        found = self.journal.find(key)
        if found is not None and self.reference is not None:
            return found
        self.progress(f"{rule or 'exact'}: loading")
        settings = context_for(self.options) | self.options.engine | {"routing": rule}
        with flashmoe.load(self.path, **settings) as model:
            return self.journal.add(key, measure(model, rule))

    def _key(self, rule: str, what: str) -> str:
        options, file = self.options, self.options.tool_calls
        source = digest(options.text if what == "text" else file)
        cut = [options.windows, options.window_tokens, options.stride] if what == "text" else []
        return key_of(open_model(self.path).identity, what, rule, source, cut, options.engine)

    def _text(self, model: Model, rule: str) -> dict[str, Any]:
        found = Divergence()
        row, score = self._decoded(model, rule, found)
        assert self.reference is not None, "the model as it is comes first"
        if rule:
            row |= found.figures()
        else:
            self.reference.score = score
            self.reference.save(self.directory, self._key(rule, "text"))
        before = self.reference.score.window_nll
        delta = paired_difference(before, score.window_nll, score.window_scored)
        return row | {"delta_nll": delta}

    def _calls(self, model: Model, rule: str) -> dict[str, Any]:
        assert self.options.tool_calls is not None, "there are no cases"
        cases, told = read_cases(self.options.tool_calls), rule or "exact"
        show = lambda n, total: self.progress(f"{told}: tool call {n} of {total}")  # noqa: E731
        return tool_row(score_tool_calls(model, cases, show))

    def _decoded(
        self, model: Model, rule: str, found: Divergence
    ) -> tuple[dict[str, Any], TextScore]:
        windows = self.options.cut(model)
        if not rule:
            vocab = model.session().engine.vocab_size
            self.reference = Reference(self.directory, windows.scored, vocab)
        assert self.reference is not None, "the model as it is comes first"
        sums: list[float] = []
        counts: list[int] = []
        model.restart_stats()
        for n, ids in enumerate(windows.ids):
            self.progress(f"{rule or 'exact'}: window {n + 1} of {len(windows.ids)}")
            session, first, begin = model.session(), windows.first_target(n), sum(counts)
            logits = np.stack([session.step(id).copy() for id in ids[:-1].tolist()])[first - 1 :]
            if rule:
                self.reference.compare(begin, logits, found)
            else:
                self.reference.put(begin, logits)
            sums.append(float(token_nll(logits, ids[first:]).sum()))
            counts.append(len(logits))
        nll = sum(sums) / sum(counts)
        score = TextScore(len(sums), windows.tokens, sum(counts), nll, windows.stride, sums, counts)
        return {"rule": rule, "nll": nll} | _cost(model), score


def _cost(model: Model) -> dict[str, Any]:
    stats = model.stats
    return {
        "lossy": stats.lossy,
        "bytes_per_token": stats.bytes_read / stats.decode_tokens,
        "experts_per_token_and_layer": (stats.cache_hits + stats.cache_misses)
        / (stats.decode_tokens * stats.num_layers),
        "hit_rate": stats.hit_rate,
        "tokens_per_second": stats.decode_tokens_per_second,
        "cache_slots": stats.cache_slots,
        "cache_bytes": stats.cache_bytes,
    }
