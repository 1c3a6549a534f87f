"""Plots of recorded lines as PNG, where matplotlib is installed (the extra `plots`)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

Row = Mapping[str, Any]

_WIDTH: Final = 9.0  # inches
_DPI: Final = 110
_OURS, _LIMIT, _GOAL = "#2f5d8a", "#d5dbe3", "#c0392b"

# What bench compare is to show: ratio to llama.cpp, share of the bound.
GOALS: Final = {
    "decode_ram": 1.15,
    "prefill_ram": 1.5,
    "decode_25": 4.0,
    "decode_50": 3.5,
    "prefill_25": 3.0,
    "bound_fraction": 0.85,
}


def draw_plots(rows: Mapping[str, Sequence[Row]]) -> dict[str, bytes]:
    """A PNG for every verb that has a plot; none at all without matplotlib."""
    if find_spec("matplotlib") is None:
        return {}
    return {verb: _png(draw, rows[verb]) for verb, draw in _DRAW.items() if verb in rows}


def _png(draw: Callable[[Any, Sequence[Row]], None], rows: Sequence[Row]) -> bytes:
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=(_WIDTH, 4), layout="constrained")
    draw(figure, rows)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def latest_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """The newest ratio of each row of the comparison; a run need not have measured all."""
    found: dict[str, float] = {}
    for row in rows:
        figures = row["figures"]
        found |= {name: figures[name]["ratio"] for name in GOALS if name in figures}
    return {name: found[name] for name in GOALS if name in found}


def _compare(figure: Any, rows: Sequence[Row]) -> None:
    """Newest ratios as bars, the goals as marks across them."""
    axes, ratios = figure.subplots(), latest_ratios(rows)
    for place, (name, ratio) in enumerate(reversed(ratios.items())):
        goal = GOALS[name]
        axes.barh(place, ratio, height=0.6, color=_OURS if ratio >= goal else "#8fa9c4")
        axes.plot([goal, goal], [place - 0.4, place + 0.4], color=_GOAL, linewidth=2)
        axes.text(ratio, place, f" {ratio:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(ratios)), list(reversed(ratios)))
    axes.set_xlabel("times llama.cpp (bound_fraction: share of the bound); red: goal")
    axes.axvline(1, color="#999", linewidth=0.8, linestyle=":")


def _decode(figure: Any, rows: Sequence[Row]) -> None:
    """Speed against the share of experts that the cache holds, and the bound above it."""
    axes = figure.subplots()
    for number, (name, points) in enumerate(_decode_points(rows).items()):
        color, (shares, reached, bounds) = f"C{number}", tuple(zip(*sorted(points), strict=True))
        axes.plot(shares, reached, marker="o", linestyle="", color=color, label=name)
        axes.plot(shares, bounds, marker="_", markersize=14, linestyle="", color=color)
        axes.vlines(shares, reached, bounds, color=color, linewidth=0.8, alpha=0.5)
    axes.set(xlabel="share of all experts in the cache", ylabel="tok/s", yscale="log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("dots: reached; lines above: what disk and memory allow", fontsize=9)
    axes.legend(fontsize=7)


def _decode_points(rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float]]]:
    """(share of experts cached, tok/s, bound) by model and experts per token."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        figures, model = row["figures"], row["model"]
        name = (
            f"{model['source']}, {model['moe_layers']} layers, K = {figures['experts_per_token']}"
        )
        share = figures["cache"]["bytes"] / model["expert_bytes"]
        speed = figures["tokens_per_second"]["median"]
        points.setdefault(name, []).append((share, speed, figures["bound_tokens_per_second"]))
    return points


def _prefill(figure: Any, rows: Sequence[Row]) -> None:
    """Speed and time to the first token against the length of the prompt."""
    speed, wait = figure.subplots(1, 2)
    lines: dict[str, dict[int, Row]] = {}
    for row in rows:  # a later figure of the same length replaces an earlier one
        found = {prompt["prompt_tokens"]: prompt for prompt in row["figures"]["prompts"]}
        lines.setdefault(_label(row), {}).update(found)
    for label, prompts in lines.items():
        lengths = sorted(prompts)
        rates = [prompts[length]["tokens_per_second"]["median"] for length in lengths]
        waits = [prompts[length]["time_to_first_token"] for length in lengths]
        speed.plot(lengths, rates, marker="o", label=label)
        wait.plot(lengths, waits, marker="o")
    speed.set(xlabel="tokens of the prompt", ylabel="tok/s", xscale="log", ylim=0)
    wait.set(xlabel="tokens of the prompt", ylabel="first token, s", xscale="log", yscale="log")
    speed.legend(fontsize=7)


def _kernels(figure: Any, rows: Sequence[Row]) -> None:
    """The latest line: each kernel's share of the limit measured beside it."""
    kernels = list(reversed(rows[-1]["figures"]["kernels"]))
    figure.set_figheight(1.2 + 0.24 * len(kernels))
    axes, places = figure.subplots(), range(len(kernels))
    shares = [kernel["rate"] / kernel["limit"] for kernel in kernels]
    axes.barh(places, [1.0] * len(kernels), height=0.7, color=_LIMIT)
    axes.barh(places, shares, height=0.7, color=_OURS)
    names = [f"{k['what']}, {k['isa']}, {k['threads']} threads" for k in kernels]
    axes.set_yticks(places, names, fontsize=8)
    for place, share in zip(places, shares, strict=True):
        axes.text(share, place, f" {share:.0%}", va="center", fontsize=8)
    axes.set_xlabel("share of what memory or arithmetic allow")


def _disk(figure: Any, rows: Sequence[Row]) -> None:
    """The latest line: rate against block size, a line per depth; direct reads, huge pages."""
    axes = figure.subplots()
    cases = [c for c in rows[-1]["figures"]["cases"] if c["direct"] and c["huge_pages"]]
    for depth in sorted({case["depth"] for case in cases}):
        chosen = [case for case in cases if case["depth"] == depth]
        rates = [case["bytes_per_s"] / 1e9 for case in chosen]
        axes.plot([c["block_bytes"] for c in chosen], rates, marker="o", label=f"{depth} in flight")
    axes.set(xlabel="block, bytes", ylabel="GB/s", xscale="log")
    axes.legend()


def _policies(figure: Any, rows: Sequence[Row]) -> None:
    """The latest line of each trace: hit rate against the share of experts that fit."""
    axes = figure.subplots()
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
    return f"{model}\n{_size(limit)}, {row['start']}, {(row['commit'] or '-')[:7]}"


def _size(limit: int | str) -> str:
    return limit if isinstance(limit, str) else f"{limit / 1e9:.2f} GB"


_DRAW: Final[Mapping[str, Callable[[Any, Sequence[Row]], None]]] = {
    "compare": _compare,
    "decode": _decode,
    "prefill": _prefill,
    "kernels": _kernels,
    "disk": _disk,
    "policies": _policies,
}
