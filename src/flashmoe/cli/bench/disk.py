"""`flashmoe bench disk`: how fast experts can be read from where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashmoe.cli.bench.options import Json, NoRecord, Results, integers
from flashmoe.cli.models import found
from flashmoe.errors import UsageError
from flashmoe.settings import MOST_THREADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flashmoe.bench.disk import Result


def disk(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|FILE", callback=found, help="A model, as for other verbs, or a file."
        ),
    ],
    block: Annotated[
        str | None, typer.Option(metavar="BYTES,...", help="Block sizes; default: several.")
    ] = None,
    depth: Annotated[str, typer.Option(metavar="N,...", help="Reads in flight.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(min=0.0, max=3600.0, help="Per case.")] = 1.0,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Read speed by block size, depth, kind and pages.

    Of a model, its experts' files; the default block sizes then include that of its experts.
    """
    from flashmoe.bench import disk as bench
    from flashmoe.bench.record import Measurement
    from flashmoe.cli.bench.output import finish, status

    files, own = _files(path)
    blocks = integers(block, "--block") if block else _default_blocks(files, own)
    cases = list(bench.cases(blocks, integers(depth, "--depth", most=MOST_THREADS)))
    rows = []
    with status() as show:
        for number, case in enumerate(cases):
            show(f"case {number + 1} of {len(cases)}")
            rows.append(_measure(files, case, seconds))
    measurement = Measurement(
        "disk", {"cases": [_row(r) for r in rows]}, data=path, options={"seconds": seconds}
    )
    text = "\n".join([bench.HEADER, *map(bench.row, rows)])
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _files(path: Path) -> tuple[Sequence[Path], list[int]]:
    """The files to read, and the size of the records in them."""
    from flashmoe.store.model import open_model

    if not path.is_dir():
        return [path], []
    pack = open_model(path)
    return sorted(set(pack.files)), [pack.manifest.experts.record_bytes]


def _default_blocks(files: Sequence[Path], own: list[int]) -> list[int]:
    """The usual block sizes that fit the files, and the model's own."""
    from flashmoe.bench.disk import BLOCKS
    from flashmoe.files import storage_errors

    with storage_errors("cannot be read", files[0]):
        smallest = min(file.stat().st_size for file in files)
    if fitting := sorted({block for block in (*BLOCKS, *own) if block <= smallest}):
        return fitting
    raise UsageError(
        "too small to measure a disk with",
        where=min(files, key=lambda file: file.stat().st_size),
        expected=f"at least {min(BLOCKS)} bytes",
        got=smallest,
        hint="Name another file, or the size of its blocks with --block",
    )


def _measure(files: Sequence[Path], case: Any, seconds: float) -> Result:
    from flashmoe.bench.disk import measure
    from flashmoe.files import storage_errors

    with storage_errors("cannot be read", files[0]):
        return measure(files, case, seconds)


def _row(result: Result) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(result.case),
        "bytes": result.nbytes,
        "seconds": result.seconds,
        "bytes_per_s": result.nbytes / result.seconds,
        "cpu_ms_per_gb": result.cpu_ms_per_gb,
        "checksum_ms_per_gb": result.checksum_ms_per_gb,
    }
