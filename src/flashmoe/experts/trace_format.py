"""The bytes of a routing trace (docs/traces.md): header, records, their checks. No I/O."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flashmoe.ops.base import Floats, Ints

MAGIC: Final = b"flashmoe-trace 1\n"
NO_EXPERT: Final = 0xFFFF
"""In place of an id: the rules in force left this rank out."""
MOST_ROWS: Final = 64
"""Tokens of a ROWS record: a long pass takes several, so that none needs much memory."""

PASS, ROWS, DONE = b"PASS", b"ROWS", b"DONE"
PREFIX: Final = struct.Struct("<4sI")  # kind, bytes of the body
CHECK: Final = struct.Struct("<I")  # CRC-32 of prefix and body
PASS_HEAD: Final = struct.Struct("<IIQQ")  # pass, slots, hits, misses
SPAN: Final = struct.Struct("<II")  # start, tokens
ROWS_HEAD: Final = struct.Struct("<IHHHH")  # pass, layer, tokens, width, 0
DONE_BODY: Final = struct.Struct("<QQ")  # hits, misses

Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class TraceRouter:
    """How experts are chosen from scores. kind: "softmax" or "sigmoid"; the rest is for sigmoids
    (flashmoe.ops.parts.SigmoidRouting): correction holds a row [E] per layer."""

    kind: str
    groups: int = 1
    chosen_groups: int = 1
    correction: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class TraceHeader:
    """What a trace says of the model and the run.

    identity: digest of the model (of a pack: SHA-256 of its manifest). layers: indices of those
    with routed experts. num_experts_per_tok: the model's own. expert_bytes: size of a record, by
    layer. lossy: rules in force, as routing.py writes them. cache_slots: experts that fit the cache
    at most. parallel: sequences that may share passes.
    """

    flashmoe: str
    model: str
    family: str
    identity: str
    num_experts: int
    num_experts_per_tok: int
    layers: tuple[int, ...]
    expert_bytes: tuple[int, ...]
    router: TraceRouter
    lossy: str
    cache_slots: int
    parallel: int
    scores: str = "float32"

    def encode(self) -> bytes:
        """The first two lines of a file."""
        return MAGIC + json.dumps(asdict(self), ensure_ascii=True).encode() + b"\n"


@dataclass(frozen=True)
class PassFacts:
    """What a trace says of a pass when it begins: the cache then, hits and misses since the model
    was opened, and (start, tokens) of each sequence's tokens."""

    number: int
    slots: int
    hits: int
    misses: int
    spans: tuple[tuple[int, int], ...]

    @property
    def decodes(self) -> bool:
        """Whether every sequence has one token, and not its first."""
        return all(start > 0 and tokens == 1 for start, tokens in self.spans)


def pass_record(facts: PassFacts) -> bytes:
    """A pass begins."""
    head = PASS_HEAD.pack(facts.number, facts.slots, facts.hits, facts.misses)
    return record(PASS, head, *(SPAN.pack(*span) for span in facts.spans))


def rows_record(number: int, layer: int, ids: Ids, scores: Floats) -> bytes:
    """What a layer's router said of consecutive tokens of a pass: ids [n, K], scores [n, E]."""
    tokens, width = ids.shape
    head = ROWS_HEAD.pack(number, layer, tokens, width, 0)
    return record(ROWS, head, ids.astype("<u2").tobytes(), scores.astype("<f4").tobytes())


def done_record(hits: int, misses: int) -> bytes:
    """The model is closed: hits and misses since it was opened."""
    return record(DONE, DONE_BODY.pack(hits, misses))


def record(kind: bytes, *parts: bytes) -> bytes:
    """A framed record."""
    body = b"".join(parts)
    data = PREFIX.pack(kind, len(body)) + body
    return data + CHECK.pack(zlib.crc32(data))


def chosen_ids(ids: Ints) -> Ids:
    """Routed ids [T, K] as a trace has them. A token whose rules left experts out names its first
    expert again in their place (layers/choice.py)."""
    found = ids.astype(np.uint16)
    found[:, 1:][ids[:, 1:] == ids[:, :1]] = NO_EXPERT
    return found


def header_of(fields: dict[str, Any]) -> TraceHeader:
    """A header from its JSON object. Raises TypeError, ValueError or KeyError for another shape."""
    router = fields["router"]
    correction = tuple(tuple(map(float, row)) for row in router["correction"])
    choice = TraceRouter(
        router["kind"], int(router["groups"]), int(router["chosen_groups"]), correction
    )
    lists = {name: tuple(map(int, fields[name])) for name in ("layers", "expert_bytes")}
    header = TraceHeader(**{**fields, **lists, "router": choice})
    _check(header)
    return header


def _check(header: TraceHeader) -> None:
    router, experts = header.router, header.num_experts
    per_layer: Sequence[Sequence[Any]] = router.correction
    texts = header.flashmoe, header.model, header.family, header.identity, header.lossy
    good = {
        "text": all(isinstance(text, str) for text in texts),
        "num_experts": isinstance(experts, int) and 1 <= experts < NO_EXPERT,
        "num_experts_per_tok": isinstance(header.num_experts_per_tok, int)
        and 1 <= header.num_experts_per_tok <= experts,
        "layers": len(header.layers) > 0
        and all(0 <= layer <= 0xFFFF for layer in header.layers)
        and len({*header.layers}) == len(header.layers),
        "expert_bytes": len(header.expert_bytes) == len(header.layers)
        and min(header.expert_bytes) >= 0,
        "scores": header.scores == "float32",
        "router": router.kind in ("softmax", "sigmoid"),
        "groups": 1 <= router.chosen_groups <= router.groups and experts % router.groups == 0,
        "correction": [len(row) for row in per_layer]
        == [experts] * (len(header.layers) if router.kind == "sigmoid" else 0),
        "cache_slots": header.cache_slots >= 0,
        "parallel": header.parallel >= 1,
    }
    wrong = [name for name, fine in good.items() if not fine]
    if wrong:
        raise ValueError(f"wrong {', '.join(wrong)}")
