"""`flashmoe bench policies`: what order of eviction would have hit how often."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashmoe.cli.bench.options import Json, NoRecord, Results, integers

if TYPE_CHECKING:
    from flashmoe.bench.replay import Replay
    from flashmoe.bench.traces import Trace


def policies(
    trace: Annotated[Path, typer.Argument(help="A routing trace; see docs/traces.md.")],
    cache: Annotated[
        str, typer.Option(metavar="N%,...", help="Cache sizes, of all experts of the trace.")
    ] = "10%,25%,50%",
    slots: Annotated[
        str | None, typer.Option(metavar="N,...", help="Cache sizes in experts, instead.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Experts per layer, where the trace does not say.")
    ] = None,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Hit rates of eviction policies on a routing trace."""
    from flashmoe.bench.record import Measurement
    from flashmoe.bench.replay import replay_all
    from flashmoe.bench.traces import read_trace
    from flashmoe.cli.bench.output import finish, status

    read = read_trace(trace, experts)
    sizes = integers(slots, "--slots") if slots else _slots(cache, read)
    with status() as show:
        show(f"replaying {trace.name}")
        replays = list(replay_all(read, sizes))
    figures = {
        "trace": read.name,
        "decoded_tokens": read.tokens,
        "experts": read.total_experts,
        "replays": [replay.row() for replay in replays],
    }
    measurement = Measurement("policies", figures, options={"experts": experts})
    text = _as_text(replays)
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def _slots(cache: str, trace: Trace) -> list[int]:
    from flashmoe.errors import UsageError
    from flashmoe.sizes import parse_size

    parts = cache.split(",")
    if not all(part.strip().endswith("%") for part in parts):
        raise UsageError("not shares", where="--cache", expected="such as 10%,25%", got=cache)
    return [parse_size(part, option="--cache", whole=trace.total_experts) for part in parts]


def _as_text(replays: list[Replay]) -> str:
    """Hit rates: a row per policy, a column per size."""
    from flashmoe.cli.bench.output import percent, table

    sizes = list(dict.fromkeys((replay.slots, replay.share) for replay in replays))
    names = dict.fromkeys(replay.policy for replay in replays)
    rates = {(replay.policy, replay.slots): replay.hit_rate for replay in replays}
    header = ("hit rate", *(f"{slots} slots ({share:.0%})" for slots, share in sizes))
    rows = [(name, *(percent(rates[name, slots]) for slots, _ in sizes)) for name in names]
    return table(header, rows)
