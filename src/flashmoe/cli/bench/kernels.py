"""`flashmoe bench kernels`: kernels beside the limits of memory and arithmetic."""

from __future__ import annotations

from typing import Annotated

import typer

from flashmoe.cli.bench.options import Json, NoRecord, Results, integers
from flashmoe.settings import MOST_THREADS


def kernels(
    threads: Annotated[str, typer.Option(metavar="N,...", help="Kernel threads.")] = "1,2",
    isa: Annotated[
        str, typer.Option(metavar="NAME,...", help="Instruction sets; auto: the best; all: each.")
    ] = "auto",
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """GB/s and GOP/s of kernels beside the machine's own.

    Kernel and limit take turns, on weights that no cache holds.
    """
    from dataclasses import asdict

    from flashmoe import _native
    from flashmoe.bench.kernels import figures
    from flashmoe.bench.record import Measurement
    from flashmoe.cli.bench.output import finish, status

    rows, lines = [], []
    counts = integers(threads, "--threads", most=MOST_THREADS)
    with status() as show:
        for name in _checked(isa.split(",")):
            _native.select_isa(name)
            for count in counts:
                lines.append(f"{count} threads, {_native.isa()}")
                for figure in figures(count):
                    show(str(figure))
                    lines.append(str(figure))
                    rows.append({"isa": _native.isa(), "threads": count, **asdict(figure)})
    measurement = Measurement("kernels", {"kernels": rows})
    text = "\n".join(lines)
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _checked(names: list[str]) -> list[str]:
    """The instruction sets to measure."""
    from flashmoe import _native
    from flashmoe.errors import UsageError

    if names == ["all"]:
        return _native.available_isas()
    known = ["auto", *_native.available_isas()]
    for name in names:
        if name not in known:
            expected = " | ".join(known)
            raise UsageError("unknown kernels", where="--isa", expected=expected, got=name)
    return names
