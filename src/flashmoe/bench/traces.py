"""Routing traces: which experts a real model asked for. Formats: docs/traces.md."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.bench.recorded import Recorded, RoutedLayer, Rows, is_recorded, read_recorded
from flashmoe.errors import FlashMoeError, UsageError
from flashmoe.experts.trace_format import NO_EXPERT
from flashmoe.files import storage_errors

CSV_HEADER = "# route_trace v1"
_DECODE_PHASE = 1


@dataclass(frozen=True, slots=True)
class Visit:
    """One layer of a token, or of all tokens of a pass.

    experts: distinct ids, in the order in which they are asked for. rows: what the router said,
    where the trace has it. mass: what the experts have of the scores of the router's own K, the
    mean over the tokens, where that is known.
    """

    layer: int
    experts: tuple[int, ...]
    decode: bool
    tokens: int = 1
    rows: tuple[Rows, ...] = field(default=(), compare=False)
    mass: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Trace:
    """A run of a model, visit by visit.

    num_experts: per layer. expert_bytes: size of one expert by layer; empty where the trace does
    not say. tokens: decoded ones. recorded: what else it says, if the engine recorded it.
    """

    name: str
    visits: tuple[Visit, ...]
    num_experts: int
    expert_bytes: Mapping[int, int]
    tokens: int
    recorded: Recorded | None = None

    @property
    def total_experts(self) -> int:
        """Experts of all layers that the trace visits."""
        return len({visit.layer for visit in self.visits}) * self.num_experts

    @property
    def widest(self) -> int:
        """Most experts that one visit asks for while decoding."""
        return max((len(visit.experts) for visit in self.visits if visit.decode), default=0)


def read_trace(path: Path, num_experts: int | None = None) -> Trace:
    """Read a trace of any format.

    num_experts: per layer, where the trace does not say; default: what its highest id implies.
    Raises UsageError for a damaged or empty trace, or ids beyond num_experts; StorageError.
    """
    if is_recorded(path):
        return trace_of(read_recorded(path))
    lines = _lines(path)
    if lines and lines[0].strip() == CSV_HEADER:
        visits, declared, sizes = _read_csv(path, lines)
    else:
        visits, declared, sizes = _read_json_lines(path, lines), None, {}
    if not visits:
        raise UsageError("the trace is empty", where=path)
    experts = declared or num_experts or _implied_experts(visits)
    _check_ids(path, visits, experts)
    return Trace(path.name, tuple(visits), experts, sizes, _decoded(visits))


def trace_of(recorded: Recorded) -> Trace:
    """A recorded run as a replay needs it. Raises UsageError if no layer ran."""
    visits = tuple(_recorded_visit(layer) for layer in recorded.layers)
    if not visits:
        raise UsageError("the trace is empty", where=recorded.path)
    header = recorded.header
    sizes = dict(zip(header.layers, header.expert_bytes, strict=True))
    return Trace(recorded.path.name, visits, header.num_experts, sizes, _decoded(visits), recorded)


def _recorded_visit(layer: RoutedLayer) -> Visit:
    tokens = sum(len(part.ids) for part in layer.rows)
    experts = wanted([part.ids for part in layer.rows])
    return Visit(layer.layer, experts, layer.facts.decodes, tokens, layer.rows)


def wanted(ids: Sequence[NDArray[Any]]) -> tuple[int, ...]:
    """The distinct experts of recorded ids, [n, K] each, in the order in which the engine asks for
    them: of a single token as they are ranked, of several ascending."""
    if sum(len(part) for part in ids) > 1:
        found = np.unique(np.concatenate([part.reshape(-1) for part in ids]))
    else:
        found = ids[0][0]
    return tuple(found[found != NO_EXPERT].tolist())


def _decoded(visits: Sequence[Visit]) -> int:
    """Tokens that were decoded: those of the first layer."""
    first = visits[0].layer
    return sum(visit.tokens for visit in visits if visit.decode and visit.layer == first)


def _lines(path: Path) -> list[str]:
    with storage_errors("cannot read", path):
        data = path.read_bytes()
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise _damaged(path, 1 + data.count(b"\n", 0, error.start), "text", "bytes") from error


def _implied_experts(visits: Iterable[Visit]) -> int:
    return 1 + max(visit.experts[-1] for visit in visits)


def _check_ids(path: Path, visits: Iterable[Visit], num_experts: int) -> None:
    for visit in visits:
        if visit.experts[0] < 0 or visit.experts[-1] >= num_experts:
            raise UsageError(
                f"expert id out of range in layer {visit.layer}",
                where=path,
                expected=f"0 to {num_experts - 1}",
                got=list(visit.experts),
            )


def _read_json_lines(path: Path, lines: Iterable[str]) -> list[Visit]:
    visits = []
    for number, line in enumerate(lines, start=1):
        try:
            layers = json.loads(line)["layers"]
            visits += [_visit(layer, ids, decode=True) for layer, ids in enumerate(layers)]
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(path, number, '{"tok": N, "layers": [[ids], ...]}', line) from error
    return visits


def _visit(layer: int, ids: Iterable[int], decode: bool) -> Visit:
    experts = tuple(sorted({int(id) for id in ids}))
    if not experts:
        raise ValueError("a layer without experts")
    return Visit(layer, experts, decode)


def _read_csv(path: Path, lines: list[str]) -> tuple[list[Visit], int | None, dict[int, int]]:
    facts = [dict(_pairs(line)) for line in lines if line.startswith("#")]
    try:
        declared = next((int(f["n_expert"]) for f in facts if "n_expert" in f), None)
        sizes = {int(f["layer"]): int(f["expert_bytes"]) for f in facts if "expert_bytes" in f}
    except (ValueError, KeyError) as error:
        raise _damaged(path, 1, "n_expert=N, layer=N expert_bytes=N", lines[0]) from error
    return list(_csv_visits(path, lines)), declared, sizes


def _pairs(comment: str) -> Iterator[tuple[str, str]]:
    for word in comment.removeprefix("#").split():
        name, equals, value = word.partition("=")
        if equals:
            yield name, value


_Place = tuple[int, int, int, int]  # turn, phase, step, layer


def _csv_visits(path: Path, lines: list[str]) -> Iterator[Visit]:
    """Consecutive picks of the same turn, phase, step and layer are one visit."""
    for place, picks in itertools.groupby(_csv_picks(path, lines), key=lambda pick: pick[0]):
        _, phase, _, layer = place
        yield _visit(layer, (expert for _, expert in picks), decode=phase == _DECODE_PHASE)


def _csv_picks(path: Path, lines: list[str]) -> Iterator[tuple[_Place, int]]:
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    for row in rows:
        try:
            turn, phase, step = int(row["turn"]), int(row["phase"]), int(row["step"])
            yield (turn, phase, step, int(row["layer"])), int(row["expert"])
        except (ValueError, TypeError, KeyError) as error:
            expected = "turn,phase,step,layer,slot,expert,..."
            raise _damaged(path, rows.line_num, expected, list(row.values())) from error


def _damaged(path: Path, line: int, expected: str, got: object) -> FlashMoeError:
    return UsageError(
        f"line {line} is no part of a trace", where=path, expected=expected, got=str(got)[:80]
    )
