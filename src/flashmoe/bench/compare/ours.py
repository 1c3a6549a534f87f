"""What runs in the process of our own engine: the same requests as in `peer`.

python -m flashmoe.bench.compare.ours run
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import flashmoe
from flashmoe.bench.compare.peer import Emit, Request, peak_bytes, serve, timed
from flashmoe.bench.stretch import stretch
from flashmoe.generate.engine import Session


def run(request: Request, emit: Emit) -> dict[str, Any]:
    """Run the request of flashmoe.bench.compare.engines with flashmoe."""
    emit("progress", "flashmoe: loading")
    start = time.perf_counter()
    with flashmoe.load(
        request["model"],
        device="cpu",  # as the other engine
        threads=request["threads"],
        context_length=request["context_length"],
        **request["settings"],
    ) as model:
        load_seconds = time.perf_counter() - start
        emit("progress", "flashmoe: warming up")
        _fill(model, request["fill"])
        emit("progress", "flashmoe: measuring")
        figures = _measure(model, request)
        cache_bytes = model.stats.cache_bytes
    return {
        **figures,
        "load_seconds": load_seconds,
        "peak_bytes": peak_bytes(),
        "cache_bytes": cache_bytes,
        "version": f"flashmoe {flashmoe.__version__}",
        "cpu": model.stats.isa,
    }


def _fill(model: flashmoe.Model, prompts: Sequence[list[int]]) -> None:
    """Run prompts until one finds every expert in memory."""
    for ids in prompts:
        misses = model.stats.cache_misses
        model.session().feed(ids)
        if model.stats.cache_misses == misses:
            return


def _measure(model: flashmoe.Model, request: Request) -> dict[str, Any]:
    session, prefill = model.session(), request["kind"] == "prefill"
    feed = _feed_at_once if prefill else _feed_singly
    feed(session, request["warm_up"])
    if prefill:
        session = model.session()
    ids = request["ids"]
    with stretch(model, len(ids)) as measured:
        figures = timed(lambda: feed(session, ids), len(ids))
    return {**figures, "engine": measured.row()}


def _feed_at_once(session: Session, ids: Sequence[int]) -> None:
    session.feed(ids)


def _feed_singly(session: Session, ids: Sequence[int]) -> None:
    """As generation feeds the tokens of an answer."""
    for id in ids:
        session.step(id)


if __name__ == "__main__":
    sys.exit(serve({"run": run}))
