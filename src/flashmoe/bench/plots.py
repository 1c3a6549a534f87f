"""Plots of recorded lines as PNG, where matplotlib is installed (the extra `plots`)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

Row = Mapping[str, Any]

_SIZE: Final = (9, 4)  # inches
_DPI: Final = 110


def draw_plots(rows: Mapping[str, Sequence[Row]]) -> dict[str, bytes]:
    """A PNG for every verb that has a plot; none at all without matplotlib."""
    if find_spec("matplotlib") is None:
        return {}
    return {verb: _png(draw, rows[verb]) for verb, draw in _DRAW.items() if verb in rows}


def _png(draw: Callable[[Any, Sequence[Row]], None], rows: Sequence[Row]) -> bytes:
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=_SIZE, layout="constrained")
    draw(figure.subplots(), rows)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _decode(axes: Any, rows: Sequence[Row]) -> None:
    """Speed and bound of every line."""
    figures = [row["figures"] for row in rows]
    places = range(len(rows))
    bounds = [figure["bound_tokens_per_second"] for figure in figures]
    axes.bar(places, bounds, color="#ccd", label="bound")
    reached = [figure["tokens_per_second"] for figure in figures]
    middle = [found["median"] for found in reached]
    below = [found["median"] - found["min"] for found in reached]
    above = [found["max"] - found["median"] for found in reached]
    axes.bar(places, middle, width=0.5, yerr=[below, above], color="#347", label="reached")
    axes.set_xticks(places, [_label(row) for row in rows], rotation=30, ha="right", fontsize=7)
    axes.set_ylabel("tok/s")
    axes.legend()


def _prefill(axes: Any, rows: Sequence[Row]) -> None:
    """Speed against the length of the prompt, a line per recorded line."""
    for row in rows:
        prompts = row["figures"]["prompts"]
        lengths = [prompt["prompt_tokens"] for prompt in prompts]
        speeds = [prompt["tokens_per_second"]["median"] for prompt in prompts]
        axes.plot(lengths, speeds, marker="o", label=_label(row))
    axes.set(xlabel="tokens of the prompt", ylabel="tok/s", xscale="log")
    axes.legend(fontsize=7)


def _disk(axes: Any, rows: Sequence[Row]) -> None:
    """The latest line: rate against block size, a line per depth; direct reads, huge pages."""
    cases = [c for c in rows[-1]["figures"]["cases"] if c["direct"] and c["huge_pages"]]
    for depth in sorted({case["depth"] for case in cases}):
        chosen = [case for case in cases if case["depth"] == depth]
        rates = [case["bytes_per_s"] / 1e9 for case in chosen]
        axes.plot([c["block_bytes"] for c in chosen], rates, marker="o", label=f"{depth} in flight")
    axes.set(xlabel="block, bytes", ylabel="GB/s", xscale="log")
    axes.legend()


def _policies(axes: Any, rows: Sequence[Row]) -> None:
    """The latest line of each trace: hit rate against the share of experts that fit."""
    latest = {row["figures"]["trace"]: row["figures"]["replays"] for row in rows}
    for trace, replays in latest.items():
        for policy in dict.fromkeys(replay["policy"] for replay in replays):
            points = sorted((r["share"], r["hit_rate"]) for r in replays if r["policy"] == policy)
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{policy}, {trace}")
    axes.set(xlabel="share of all experts in the cache", ylabel="hit rate")
    axes.legend(fontsize=7)


def _label(row: Row) -> str:
    model = row["model"]["source"] if row["model"] else row["verb"]
    limit = row["limits"]["cgroup_bytes"] or row["limits"]["ram"] or "no limit"
    return f"{model}\n{limit}, {row['start']}, {(row['commit'] or '-')[:7]}"


_DRAW: Final[Mapping[str, Callable[[Any, Sequence[Row]], None]]] = {
    "decode": _decode,
    "prefill": _prefill,
    "disk": _disk,
    "policies": _policies,
}
