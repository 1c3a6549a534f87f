"""`flashmoe bench compare`: side by side with llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flashmoe.cli.bench.options import NoRecord, Results, Seed, Threads
from flashmoe.settings import PEER_PYTHON


def compare(
    shape: Annotated[str, typer.Option(help="Shape of the models.")] = "qwen3-30b-a3b",
    layers: Annotated[int | None, typer.Option(help="Fewer layers than the shape has.")] = 24,
    threads: Threads = None,
    pairs: Annotated[int, typer.Option(help="Runs of each engine per row.")] = 3,
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where the models are made and kept.")
    ] = Path("models/compare"),
    only: Annotated[
        str | None,
        typer.Option(
            "--only", "--rows", metavar="ROW,...", help="Rows to run, as decode_ram,decode_25."
        ),
    ] = None,
    peer_python: Annotated[
        str, typer.Option(envvar=PEER_PYTHON, help="Python that has llama-cpp-python and gguf.")
    ] = sys.executable,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Use pairs that earlier commands measured, if nothing changed."
        ),
    ] = False,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Ratios to llama.cpp: same shape, bits, threads and memory limit, runs in turns."""
    from json import dumps

    from flashmoe.bench.compare.measure import CompareOptions, measure_comparison
    from flashmoe.bench.compare.rows import chosen_rows
    from flashmoe.bench.record import Measurement, model_facts
    from flashmoe.cli.bench.output import finish, status
    from flashmoe.store.packed import PackedModel

    options = CompareOptions(
        folder=folder,
        shape=shape,
        layers=layers,
        pairs=pairs,
        peer_python=peer_python,
        rows=chosen_rows(only),
        seed=seed,
        resume=resume,
        **({} if threads is None else {"threads": threads}),
    )
    with status() as show:
        figures = measure_comparison(options, show, _announce)
    pack = PackedModel.open(folder / figures["details"]["twins"]["pack"])
    measurement = Measurement(
        "compare",
        figures,
        data=folder,
        model=model_facts(pack),
        options={
            "threads": options.threads,
            "pairs": pairs,
            "only": only,
            "seed": seed,
            "resume": resume,
        },
    )
    text = dumps(figures) if json else _as_text(figures)
    finish(measurement, text, as_json=False, results=results, no_record=no_record)


def _announce(text: str) -> None:
    """A line of its own, so that a log shows how far a comparison of an hour has come."""
    print(f"flashmoe: {text}", file=sys.stderr, flush=True)


def _as_text(figures: dict[str, Any]) -> str:
    from flashmoe.cli.bench.output import table

    header = ("", "ratio", "flashmoe", "llama.cpp", "pairs")
    rows = [
        (
            name,
            f"{row['ratio']:.2f}",
            f"{row['flashmoe_median']:.2f} tok/s",
            # The bound stands in the peer's place.
            f"{row.get('peer_median', row.get('bound_median')):.2f} tok/s",
            row["pairs"],
        )
        for name, row in figures.items()
        if name != "details"
    ]
    notes = ["bound_fraction: beside what disk and memory allow decode_25"]
    return "\n".join([table(header, rows), *notes, *figures["details"]["notes"]])
