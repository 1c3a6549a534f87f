"""What lossy rules of routing cost and save: the same text, token by token, under each of them.

Every token is a decode step behind the cache of the engine, because some rules depend on what is in
memory: quality, bytes and speed are of the same run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

import flashmoe
from flashmoe.evals.divergence import Divergence, Reference
from flashmoe.evals.measure import EvalOptions, tool_row
from flashmoe.evals.paired import paired_difference
from flashmoe.evals.perplexity import Progress, TextScore, token_nll
from flashmoe.evals.runs import context_for
from flashmoe.evals.tool_calls import read_cases, score_tool_calls

if TYPE_CHECKING:
    from flashmoe.api import Model


def measure_knobs(
    path: Path, rules: Sequence[str], options: EvalOptions, progress: Progress
) -> Iterator[dict[str, Any]]:
    """A row per rule (as RoutingOptions.parse takes them), after one of the model as it is ("").

    The reference of kl_mean and delta_nll is the model as it is. Raises what flashmoe.load raises.
    """
    with TemporaryDirectory(prefix="flashmoe-knobs-") as directory:
        reference: Reference | None = None
        for rule in ("", *rules):
            progress(f"{rule or 'exact'}: loading")
            settings = context_for(options) | options.engine | {"routing": rule}
            with flashmoe.load(path, **settings) as model:
                found = Divergence()
                if reference is None:
                    windows = options.cut(model)
                    vocab = model.session().engine.vocab_size
                    reference = Reference(Path(directory), windows.scored, vocab)
                row, score = _decoded(model, rule, options, progress, reference, found)
                if not rule:
                    reference.score = score
                else:
                    row |= found.figures()
                before = reference.score.window_nll
                weights = score.window_scored
                row["delta_nll"] = paired_difference(before, score.window_nll, weights)
                if options.tool_calls is not None:
                    progress(f"{rule or 'exact'}: tool calls")
                    calls = score_tool_calls(model, read_cases(options.tool_calls))
                    row["tool_calls"] = tool_row(calls)
                yield row


def _decoded(
    model: Model,
    rule: str,
    options: EvalOptions,
    progress: Progress,
    reference: Reference,
    found: Divergence,
) -> tuple[dict[str, Any], TextScore]:
    windows = options.cut(model)
    sums: list[float] = []
    counts: list[int] = []
    model.restart_stats()
    for n, ids in enumerate(windows.ids):
        progress(f"{rule or 'exact'}: window {n + 1} of {len(windows.ids)}")
        session, first, begin = model.session(), windows.first_target(n), sum(counts)
        logits = np.stack([session.step(id).copy() for id in ids[:-1].tolist()])[first - 1 :]
        if rule:
            reference.compare(begin, logits, found)
        else:
            reference.put(begin, logits)
        sums.append(float(token_nll(logits, ids[first:]).sum()))
        counts.append(len(logits))
    stats, total = model.stats, sum(counts)
    nll = sum(sums) / total
    score = TextScore(len(sums), windows.tokens, total, nll, windows.stride, sums, counts)
    return {
        "rule": rule,
        "lossy": stats.lossy,
        "nll": nll,
        "bytes_per_token": stats.bytes_read / stats.decode_tokens,
        "experts_per_token_and_layer": (stats.cache_hits + stats.cache_misses)
        / (stats.decode_tokens * stats.num_layers),
        "hit_rate": stats.hit_rate,
        "tokens_per_second": stats.decode_tokens_per_second,
        "cache_slots": stats.cache_slots,
    }, score
