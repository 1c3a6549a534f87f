#!/usr/bin/env python3
"""Decode from memory of packs of one shape, window by window in turns, so that what else the host
does falls on all of them alike.

    python bench/decode_in_turns.py Q4 Q3 Q2 [--isa avx2] --results bench/results/turns.jsonl

All packs are open at once, with every expert in memory. A turn is one window of each pack, over the
same token ids; a turn's ratio is its tok/s over that of the first pack in the same turn.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flashmoe
from flashmoe.bench.decode import DecodeOptions, run_window
from flashmoe.bench.record import Measurement, append, model_facts
from flashmoe.bench.stretch import Stretch, middle, random_ids, spread
from flashmoe.store.model import open_model

if TYPE_CHECKING:
    from flashmoe.api import Model

# Prompts that fill a cache: until one misses nothing.
_FILLING_PROMPTS, _FILLING_TOKENS, _FILLING_SEED = 24, 96, 1 << 20


def turns(models: list[Model], options: DecodeOptions) -> list[list[Stretch]]:
    """The windows [turn][model]; the order within a turn is reversed in every other one."""
    measured = []
    for turn in range(options.repeat):
        order = range(len(models))[:: -1 if turn % 2 else 1]
        windows = {at: run_window(models[at], options, options.seed + turn) for at in order}
        measured.append([windows[at] for at in range(len(models))])
    return measured


def fill(model: Model) -> None:
    """Every expert that random tokens want is in memory afterwards."""
    vocab_size = model.session().engine.vocab_size
    for number in range(_FILLING_PROMPTS):
        misses = model.stats.cache_misses
        model.session().feed(random_ids(vocab_size, _FILLING_TOKENS, _FILLING_SEED + number))
        if model.stats.cache_misses == misses:
            return


def figures(measured: list[list[Stretch]], at: int) -> dict[str, Any]:
    """Of one model: tok/s, and tok/s and time in experts over the first model's, turn by turn."""
    rows = [turn[at].row() for turn in measured]
    speed = [turn[at].tokens_per_second / turn[0].tokens_per_second for turn in measured]
    experts = [turn[0].phases["experts"] / turn[at].phases["experts"] for turn in measured]
    return {
        "tokens_per_second": spread([row["tokens_per_second"] for row in rows]),
        "over_first": spread(speed),
        "experts_rate_over_first": spread(experts),
        "hit_rate": middle(rows, "hit_rate"),
        "windows": rows,
    }


def main() -> None:
    """Prints a line per pack, and records one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packs", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=32, help="per window")
    parser.add_argument("--repeat", type=int, default=9, help="turns")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    options = DecodeOptions(tokens=given.tokens, repeat=given.repeat, start="warm")
    with ExitStack() as stack:
        models = [
            stack.enter_context(
                flashmoe.load(pack, cache="all", isa=given.isa, context_length=256, device="cpu")
            )
            for pack in given.packs
        ]
        for model in models:
            fill(model)
            run_window(model, options, _FILLING_SEED)
        measured = turns(models, options)
    for at, pack in enumerate(given.packs):
        found = figures(measured, at)
        print(_text(pack, found))
        if given.results:
            facts = model_facts(open_model(pack))
            chosen = vars(options) | {"isa": given.isa, "turns_with": list(map(str, given.packs))}
            row = Measurement("turns", found, pack, facts, start="warm", options=chosen).row()
            append(row, given.results)


def _text(pack: Path, found: dict[str, Any]) -> str:
    speed, over = found["tokens_per_second"], found["over_first"]
    experts = found["experts_rate_over_first"]
    return (
        f"{pack.name}: {speed['median']:.2f} tok/s ({speed['min']:.2f} to {speed['max']:.2f}), "
        f"over the first {over['median']:.3f} ({over['min']:.3f} to {over['max']:.3f}), "
        f"experts alone {experts['median']:.3f} ({experts['min']:.3f} to {experts['max']:.3f}), "
        f"hits {found['hit_rate']:.1%}"
    )


if __name__ == "__main__":
    main()
