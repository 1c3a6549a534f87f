"""All recorded lines as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from flashmoe.bench.plots import GOALS, draw_plots
from flashmoe.bench.record import SCHEMA
from flashmoe.errors import UsageError
from flashmoe.files import storage_errors
from flashmoe.pages.html import page, section, table

Row = Mapping[str, Any]
Text = Callable[[Row], str]

PAGE: Final = "index.html"


@dataclass(frozen=True)
class Column:
    """title, and what a line shows there; a figure that the line lacks shows as -."""

    title: str
    text: Text

    def cell(self, row: Row) -> str:
        try:
            return self.text(row)
        except (KeyError, TypeError):
            return "-"


def _figure(name: str, scale: float = 1.0, form: str = ".2f") -> Text:
    return lambda row: format(row["figures"][name] * scale, form)


def _median(name: str) -> Text:
    return lambda row: f"{row['figures'][name]['median']:.2f}"


def _ratio(name: str) -> Text:
    return lambda row: f"{row['figures'][name]['ratio']:.2f}"


_GENERAL: Final = (
    Column("time", lambda row: row["time"][:16].replace("T", " ")),
    Column("commit", lambda row: row["commit"] or "-"),
    Column("machine", lambda row: f"{row['machine']['cpu']}, {row['machine']['isa']}"),
)
_MODEL: Final = (
    Column("model", lambda row: f"{row['model']['source']}, {row['model']['moe_layers']} layers"),
    Column("formats", lambda row: row["model"]["experts_format"]),
    Column("limit", lambda row: _limit(row["limits"])),
    Column("start", lambda row: row["start"] or "-"),
)
_COLUMNS: Final[Mapping[str, Sequence[Column]]] = {
    "compare": (
        *_GENERAL,
        *_MODEL[:2],
        *(Column(f"{name} (≥ {goal})", _ratio(name)) for name, goal in GOALS.items()),
        Column("pairs", lambda row: str(row["options"]["pairs"])),
    ),
    "decode": (
        *_GENERAL,
        *_MODEL,
        Column("tok/s", _median("tokens_per_second")),
        Column("bound", _figure("bound_tokens_per_second")),
        Column("of bound", _figure("bound_fraction", form=".1%")),
        Column("hit rate", _figure("hit_rate", form=".1%")),
        Column("GB/token", _figure("bytes_read_per_token", 1e-9, ".3f")),
        Column("disk GB/s", _figure("disk_bytes_per_s_while_reading", 1e-9)),
        Column("I/O CPU ms/GB", _figure("cpu_ms_per_gb", form=".0f")),
        Column("Python", _figure("python_share", form=".1%")),
    ),
    "prefill": (
        *_GENERAL,
        *_MODEL,
        Column("tokens: tok/s, first token", lambda row: _prompts(row["figures"]["prompts"])),
    ),
    "startup": (
        *_GENERAL,
        *_MODEL,
        Column("pack GB", _figure("pack_bytes", 1e-9, ".0f")),
        Column("open s", _figure("open_seconds")),
        Column("without weights", _figure("open_seconds_but_weights")),
        Column("first token", _figure("first_token_seconds")),
        Column("--help", _figure("help_seconds")),
    ),
    "disk": (
        *_GENERAL,
        Column("best", lambda row: _best(row["figures"]["cases"], "bytes_per_s")),
    ),
    "kernels": (
        *_GENERAL,
        Column("kernels", lambda row: str(len(row["figures"]["kernels"]))),
        Column("worst of limit", lambda row: _worst_share(row["figures"]["kernels"])),
    ),
    "policies": (
        *_GENERAL[:2],
        Column("trace", lambda row: row["figures"]["trace"]),
        Column("hit rates", lambda row: _policies(row["figures"]["replays"])),
    ),
}
_OTHERS: Final = (*_GENERAL, Column("command", lambda row: row["command"]))


def _limit(limits: Row) -> str:
    if limits["cgroup_bytes"] is not None:
        return f"{limits['cgroup_bytes'] / 1e9:.2f} GB cgroup"
    return limits["ram"] or "none"


def _prompts(prompts: Sequence[Row]) -> str:
    return "; ".join(
        f"{p['prompt_tokens']}: {p['tokens_per_second']['median']:.1f},"
        f" {p['time_to_first_token']:.1f} s"
        for p in prompts
    )


def _best(cases: Sequence[Row], name: str) -> str:
    best = max(cases, key=lambda case: float(case[name]))
    kind = "direct" if best["direct"] else "buffered"
    return f"{best[name] / 1e9:.2f} GB/s ({best['block_bytes']} x {best['depth']}, {kind})"


def _worst_share(kernels: Sequence[Row]) -> str:
    worst = min(kernels, key=lambda kernel: float(kernel["rate"] / kernel["limit"]))
    return f"{worst['rate'] / worst['limit']:.0%} ({worst['what']}, {worst['threads']} threads)"


def _policies(replays: Sequence[Row]) -> str:
    return "; ".join(f"{r['policy']} {r['hit_rate']:.1%} at {r['share']:.0%}" for r in replays)


def read_rows(results: Path) -> dict[str, list[Row]]:
    """The lines of every file *.jsonl in a folder, by verb, oldest first. Raises UsageError."""
    rows: dict[str, list[Row]] = {}
    for file in sorted(results.glob("*.jsonl")):
        with storage_errors("cannot read", file):
            lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            row = _parse(line, f"{file}, line {number}")
            rows.setdefault(row["verb"], []).append(row)
    if not rows:
        raise UsageError("nothing is recorded here", where=results)
    return {verb: sorted(found, key=lambda row: str(row["time"])) for verb, found in rows.items()}


def _parse(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError("not JSON", where=where, got=line[:80]) from error
    if not isinstance(row, dict) or row.get("schema") != SCHEMA or "verb" not in row:
        expected = f'an object with "schema": {SCHEMA} and a verb'
        raise UsageError("not a recorded line", where=where, expected=expected, got=line[:80])
    return row


def write_report(results: Path, out: Path) -> Path:
    """Write the page (and, with matplotlib, plots as PNG beside it) -> the page's path."""
    rows = read_rows(results)
    plots = draw_plots(rows)
    with storage_errors("cannot write", out):
        out.mkdir(parents=True, exist_ok=True)
        for verb, png in plots.items():
            (out / f"{verb}.png").write_bytes(png)
        (out / PAGE).write_text(render(rows, plots), encoding="utf-8")
    return out / PAGE


def render(rows: Mapping[str, Sequence[Row]], plots: Mapping[str, bytes]) -> str:
    """The page."""
    # In the order of the columns' table: what is asked first stands first.
    verbs = sorted(rows, key=lambda verb: [*_COLUMNS, verb].index(verb))
    parts = [_section(verb, rows[verb], plots.get(verb)) for verb in verbs]
    return page("flashmoe bench", "".join(parts))


def _section(verb: str, rows: Sequence[Row], plot: bytes | None) -> str:
    columns = _COLUMNS.get(verb, _OTHERS)
    lines = ([column.cell(row) for column in columns] for row in rows)
    found = table([column.title for column in columns], lines)
    return section(verb, _image(verb, plot), found)


def _image(verb: str, png: bytes | None) -> str:
    if png is None:
        return ""
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(verb)}" src="data:image/png;base64,{data}">\n'
