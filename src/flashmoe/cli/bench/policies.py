"""`flashmoe bench policies`: what order of eviction would have hit how often."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashmoe.cli.bench.options import Json, NoRecord, Results, integers

if TYPE_CHECKING:
    from flashmoe.bench.replay import Replay
    from flashmoe.bench.traces import Trace
    from flashmoe.routing import RoutingOptions


def policies(
    trace: Annotated[Path, typer.Argument(help="A routing trace; see docs/traces.md.")],
    cache: Annotated[
        str, typer.Option(metavar="N%,...", help="Cache sizes, of all experts of the trace.")
    ] = "10%,25%,50%",
    slots: Annotated[
        str | None, typer.Option(metavar="N,...", help="Cache sizes in experts, instead.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Orders of eviction; default: all.")
    ] = None,
    routing: Annotated[
        list[str] | None,
        typer.Option(metavar="RULES", help="Lossy routing to try (repeatable), as margin=0.5."),
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Experts per layer, where the trace does not say.")
    ] = None,
    json: Json = False,
    results: Results = None,
    no_record: NoRecord = False,
) -> None:
    """Hit rates of eviction policies on a routing trace, as it is and under lossy rules."""
    from flashmoe.bench.record import Measurement
    from flashmoe.bench.replay import replay_all
    from flashmoe.bench.traces import read_trace
    from flashmoe.cli.bench.output import finish, status

    read = read_trace(trace, experts)
    rules = _rules(routing or [])
    sizes = integers(slots, "--slots") if slots else _slots(cache, read)
    names = policy.split(",") if policy else None
    say_what_is_cut(read)
    with status() as show:
        show(f"replaying {trace.name}")
        replays = list(replay_all(read, sizes, names, rules))
    figures = {
        "trace": read.name,
        "decoded_tokens": read.tokens,
        "experts": read.total_experts,
        "replays": [replay.row() for replay in replays],
    } | _origin(read)
    measurement = Measurement("policies", figures, options={"experts": experts})
    text = _as_text(replays)
    finish(measurement, text, as_json=json, results=results, no_record=no_record)


def say_what_is_cut(trace: Trace) -> None:
    """Tells of a recording that was broken off."""
    if trace.recorded is not None and trace.recorded.cut_bytes:
        lost = f"{trace.recorded.cut_bytes} bytes at its end are no whole record and are left out"
        print(f"flashmoe: warning: {trace.name}: {lost}", file=sys.stderr)


def _rules(given: list[str]) -> list[RoutingOptions]:
    """Without rules first: what the others are compared with."""
    from flashmoe.routing import RoutingOptions

    return [RoutingOptions(), *(RoutingOptions.parse(text) for text in given)]


def _origin(trace: Trace) -> dict[str, object]:
    """What a recorded trace says of its model."""
    if trace.recorded is None:
        return {}
    header = trace.recorded.header
    return {"model": header.model, "identity": header.identity, "lossy": header.lossy}


def _slots(cache: str, trace: Trace) -> list[int]:
    from flashmoe.errors import UsageError
    from flashmoe.sizes import parse_size

    parts = cache.split(",")
    if not all(part.strip().endswith("%") for part in parts):
        raise UsageError("not shares", where="--cache", expected="such as 10%,25%", got=cache)
    return [parse_size(part, option="--cache", whole=trace.total_experts) for part in parts]


def _as_text(replays: list[Replay]) -> str:
    """Hit rates, a row per rule and policy, a column per size; then what was read and kept."""
    from flashmoe.cli.bench.output import percent
    from flashmoe.cli.units import human_bytes

    tables = [_table("hit rate", replays, lambda replay: percent(replay.hit_rate))]
    if all(replay.bytes_per_token is not None for replay in replays):
        read = lambda replay: human_bytes(round(replay.bytes_per_token))  # noqa: E731
        tables.append(_table("read per token", replays, read))
    if any(replay.routing for replay in replays):
        kept = lambda replay: f"{percent(replay.mass)} by {replay.experts:.2f}"  # noqa: E731
        tables.append(_table("router mass kept, by experts per layer", replays, kept, merge=True))
    return "\n\n".join(tables)


def _table(
    title: str, replays: list[Replay], cell: Callable[[Replay], str], merge: bool = False
) -> str:
    """merge: rules that give the same whatever policy and size have one row."""
    from flashmoe.cli.bench.output import table

    sizes = list(dict.fromkeys((replay.slots, replay.share) for replay in replays))
    names: _Names = dict.fromkeys((replay.routing, replay.policy) for replay in replays)
    cells: _Cells = {(r.routing, r.policy, r.slots): cell(r) for r in replays}
    if merge:
        names, cells = _merged(names, cells)
    header = (title, *(f"{slots} slots ({share:.0%})" for slots, share in sizes))
    rows = [
        (f"{routing}  {policy}".strip(), *(cells[routing, policy, slots] for slots, _ in sizes))
        for routing, policy in names
    ]
    return table(header, rows)


_Names = dict[tuple[str, str], None]
_Cells = dict[tuple[str, str, int], str]


def _merged(names: _Names, cells: _Cells) -> tuple[_Names, _Cells]:
    by_rule: dict[str, set[str]] = {}
    for (routing, _, _), text in cells.items():
        by_rule.setdefault(routing, set()).add(text)
    same = {routing for routing, texts in by_rule.items() if len(texts) == 1}
    shown = {(r, p): (r or "as recorded", "") if r in same else (r, p) for r, p in names}
    merged = {(*shown[r, p], size): text for (r, p, size), text in cells.items()}
    return dict.fromkeys(shown.values()), merged
