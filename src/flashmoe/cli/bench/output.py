"""What the verbs of `flashmoe bench` do with a measurement: show it, record it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashmoe.bench.record import Measurement, append, results_file
from flashmoe.cli.terminal import StatusLine


def finish(
    measurement: Measurement, text: str, *, as_json: bool, results: Path | None, no_record: bool
) -> None:
    """Append the row to its file; print text, or the row as JSON.

    Neither a pipe that is closed nor a file that cannot be written costs the other one: a
    measurement may have taken an hour.
    """
    row = measurement.row()
    try:
        if not no_record:
            _record(row, measurement.verb, results)
    finally:
        print(json.dumps(row) if as_json else text)


def _record(row: dict[str, Any], verb: str, results: Path | None) -> None:
    file = results or results_file(verb, Path.cwd())
    if file is not None:
        append(row, file)
        return
    hint = "not recorded: this is no checkout of flashmoe (--results FILE records it)"
    print(f"flashmoe: {hint}", file=sys.stderr)


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being measured."""
    line = StatusLine(sys.stderr)
    try:
        yield line.show
    finally:
        line.clear()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as need be: the first to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(row_text(row, widths) for row in cells)


def row_text(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of a table."""
    return "  ".join(
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )


def percent(share: float | None) -> str:
    """0.123 -> 12.3%; None -> -."""
    return "-" if share is None else f"{share:.1%}"


def number(value: float | None) -> str:
    """12.3 -> 12; None -> -."""
    return "-" if value is None else f"{value:.0f}"


def gb_per_s(rate: float | None) -> str:
    """Bytes per second -> 1.23 GB/s; None -> -."""
    return "-" if rate is None else f"{rate / 1e9:.2f} GB/s"


def spread_text(spread: Mapping[str, float], unit: str) -> str:
    """12.3 tok/s (11.9 to 12.8)."""
    return f"{spread['median']:.2f} {unit} ({spread['min']:.2f} to {spread['max']:.2f})"


def phase_text(phases: Mapping[str, float]) -> str:
    """Phases in ms, the longest first."""
    ordered = sorted(phases.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.2f}" for name, value in ordered)
