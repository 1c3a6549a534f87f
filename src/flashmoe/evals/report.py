"""What `eval compare` and `eval knobs` found, as HTML pages that need nothing beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe.evals.frontier import fixed_k_at, kind_of
from flashmoe.pages.html import page, paragraph, section, table
from flashmoe.pages.svg import Point, scatter

Row = Mapping[str, Any]

_METHOD = (
    "Difference: mean of nats per scored token with a paired 95 % interval, a bootstrap of whole "
    "windows. KL: of the model's distributions from the reference's, in nats."
)
_BYTES = "Bytes per token: of experts, as the disk would be asked if none were in memory."


def comparison_page(report: Row) -> str:
    """A page of the object that evals/compare returns."""
    rows = report["models"]
    parts = [paragraph(f"WARNING: {text}", warning=True) for text in report["warnings"]]
    parts += [_inputs(report), _models(rows), _pairs(report["pairs"]), _calls(rows)]
    parts += [_calibration(rows), _distances(report)]
    return page("flashmoe eval compare", "".join(parts))


def knobs_page(about: Row, rows: Sequence[Row]) -> str:
    """A page of the rows of evals/knobs; about: what was measured on, name to text."""
    points = [
        _point(row, row["bytes_per_token"] / 1e3, row["rule"] or "exact", kind_of(row["rule"]))
        for row in rows
    ]
    plot = scatter("Loss against what is read", "kB read per token", "ΔNLL, nats", points)
    note = (
        "Lossy: every row but the first is not the model's own answer. At K: what a fixed number "
        "of experts loses for the same bytes, between the measured ones."
    )
    body = section("Rules of routing", _pairs_of(about), plot, knobs_table(rows), paragraph(note))
    return page("flashmoe eval knobs", body)


def knobs_table(rows: Sequence[Row]) -> str:
    """The rows as a table in HTML."""
    return table(*knob_cells(rows))


def knob_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of rules."""
    header = ["rule", "ΔNLL", "95 %", "at K", "KL", "same first", "exact calls", "experts"]
    header += ["kB/token", "hit rate", "tok/s"]
    return header, [_knob_line(row, fixed_k_at(rows, row["bytes_per_token"])) for row in rows]


def _knob_line(row: Row, fixed: float | None) -> list[str]:
    return [
        row["rule"] or "exact",
        *_difference(row["delta_nll"]),
        "-" if fixed is None else f"{fixed:+.4f}",
        _figure(row, "kl_mean", ".4f"),
        _figure(row, "top1", ".1%"),
        str(row["tool_calls"]["exact"]) if "tool_calls" in row else "-",
        f"{row['experts_per_token_and_layer']:.2f}",
        f"{row['bytes_per_token'] / 1e3:.0f}",
        f"{row['hit_rate']:.1%}",
        f"{row['tokens_per_second']:.0f}",
    ]


def _models(rows: Sequence[Row]) -> str:
    header = ["model", "experts", "dense", "bits/weight", "of experts", "MB/token", "NLL"]
    header += ["perplexity", "ΔNLL", "95 %", "KL", "KL 99.9 %", "same first", "lossy"]
    lines = [
        [
            row["name"],
            row["experts_format"],
            row["dense_format"],
            f"{row['bits_per_weight']:.3f}",
            f"{row['expert_bits_per_weight']:.3f}",
            f"{row['bytes_per_token'] / 1e6:.3f}",
            _figure(row, "nll", ".5f"),
            _figure(row, "perplexity", ".3f"),
            *(_difference(row["delta_nll"]) if "delta_nll" in row else ("-", "-")),
            _figure(row, "kl_mean", ".5f"),
            _figure(row, "kl_p999", ".4f"),
            _figure(row, "top1", ".2%"),
            row["lossy"] or "-",
        ]
        for row in rows
    ]
    note = "Bits per weight count scales and the padding of records."
    return section(
        "Models", table(header, lines), paragraph(f"{_METHOD} {note} {_BYTES}"), _plots(rows)
    )


def _plots(rows: Sequence[Row]) -> str:
    """Quality against size: the difference from the reference, without one the NLL itself."""
    scored = [row for row in rows if "nll" in row]
    if not scored:
        return paragraph("No text was scored: there is nothing to plot.")
    axis = "ΔNLL, nats" if "delta_nll" in scored[0] else "NLL, nats"
    sizes = {
        "bits per weight of the experts": ("expert_bits_per_weight", 1.0),
        "bits per weight of the whole model": ("bits_per_weight", 1.0),
        "MB of experts per token": ("bytes_per_token", 1e-6),
    }
    return "".join(
        scatter(
            f"{axis} against {label}",
            label,
            axis,
            [_point(row, row[name] * scale, row["name"], "") for row in scored],
        )
        for label, (name, scale) in sizes.items()
    )


def _point(row: Row, x: float, label: str, series: str) -> Point:
    delta = row.get("delta_nll")
    if delta is None:
        return Point(x, row["nll"], label, row["nll"], row["nll"], series)
    return Point(x, delta["mean"], label, delta["low"], delta["high"], series)


def _pairs(pairs: Sequence[Row]) -> str:
    if not pairs:
        return ""
    header = ["first", "second", "second - first, NLL", "95 %", "exact calls", "95 %"]
    lines = [
        [
            pair["first"],
            pair["second"],
            *(_difference(pair["delta_nll"]) if "delta_nll" in pair else ("-", "-")),
            *(_difference(pair["delta_exact"], ".3f") if "delta_exact" in pair else ("-", "-")),
        ]
        for pair in pairs
    ]
    return section("Every two of them", table(header, lines))


def _calls(rows: Sequence[Row]) -> str:
    if not any("tool_calls" in row for row in rows):
        return ""
    header = ["model", "answers", "cases", "valid JSON", "right tool", "by schema", "exact"]
    names = ("cases", "valid_json", "right_tool", "schema", "exact")
    lines = []
    for row in rows:
        calls = row["tool_calls"]
        told = {"free" if calls["held_to"] is None else calls["held_to"]: calls}
        told |= {"held to the grammar": calls["constrained"]} if "constrained" in calls else {}
        for how, one in told.items():
            lines.append([row["name"], how, *(str(one[name]) for name in names)])
    return section("Tool calls", table(header, lines))


def _calibration(rows: Sequence[Row]) -> str:
    header = ["model", "calibrated on", "measured on", "verdict", "shared", "looked at", "1 in"]
    lines = [
        [
            row["name"],
            row["calibration"]["record"] or "-",
            name,
            leak["verdict"],
            str(leak["shared"]),
            str(leak["looked_at"]),
            f"{leak['sampling']:.1f}",
        ]
        for row in rows
        for name, leak in row["calibration"]["leaks"].items()
    ]
    note = (
        "Passages of 13 words (whole turns of 6 to 12) of what was scored are looked up in a "
        "sketch of the calibration text, which holds one in so many. overlaps: at least 0.1 % of "
        "them are there. unknown: the pack has no sketch, others quantised it, or nothing was "
        "long enough to look up."
    )
    return section("Calibration and evaluation", table(header, lines), paragraph(note))


def _inputs(report: Row) -> str:
    found = {}
    for name, one in report["inputs"].items():
        told = ", ".join(f"{key} {value}" for key, value in one.items())
        found[name] = told
    if report["reference"] is not None:
        reference = report["reference"]
        found["reference"] = f"{reference['model']}, NLL {reference['nll']:.5f}"
    return section("What was measured", _pairs_of(found))


def _distances(report: Row) -> str:
    """KL by the confidence of the reference, and what rounding alone makes."""
    rows = [(r["name"], part) for r in report["models"] for part in r.get("by_confidence", ())]
    noise = (report["reference"] or {}).get("noise")
    if not rows:
        return section("Distance from the reference", paragraph("No reference was given."))
    if noise:
        rows.insert(0, ("bf16 rounding of the reference", noise | {"from": 0.0, "to": 1.0}))
    header = ["model", "reference gives", "tokens", "KL", "median", "99.9 %", "same first"]
    lines = [
        [
            name,
            f"{part['from']:.2f} to {part['to']:.2f}",
            str(part.get("tokens", "all")),
            f"{part['kl_mean']:.5f}",
            f"{part['kl_median']:.5f}",
            f"{part['kl_p999']:.4f}",
            f"{part['top1']:.2%}",
        ]
        for name, part in rows
    ]
    return section("Distance from the reference", table(header, lines))


def _pairs_of(found: Row) -> str:
    return table(["", ""], [[name, str(value)] for name, value in found.items()])


def _difference(delta: Row, form: str = ".4f") -> tuple[str, str]:
    low, high = (format(delta[end], "+" + form) for end in ("low", "high"))
    return format(delta["mean"], "+" + form), f"{low} to {high}"


def _figure(row: Row, name: str, form: str) -> str:
    return format(row[name], form) if name in row else "-"
