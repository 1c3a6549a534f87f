"""The parts of a layer as one native call each. Weights and states are bound to native handles when
they are first seen, so that a call in the token loop checks and converts no array.

The native calls return the seconds that they took: what is spent around them is Python's.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flashmoe import _native
from flashmoe.ops.base import ExpertShape, Floats, Residents
from flashmoe.ops.clock import PhaseClock
from flashmoe.ops.host import softcap
from flashmoe.ops.parts import (
    AttentionWeights,
    GatedDeltaWeights,
    HeadWeights,
    KvSpans,
    KvState,
    RecurrentSpans,
    RecurrentState,
    Routed,
    RouterWeights,
    SharedExpertWeights,
)

Seen = TypeVar("Seen")
View = TypeVar("View")


class _Latest(Generic[Seen, View]):
    """The view of the object seen last: the layers of a pass, and often the passes, share it."""

    def __init__(self, make: Callable[[Seen], View]) -> None:
        self._make = make
        self._seen: Seen | None = None
        self._view: View | None = None

    def of(self, seen: Seen) -> View:
        if self._view is None or seen is not self._seen:
            self._seen, self._view = seen, self._make(seen)
        return self._view

    def forget(self) -> None:
        self._seen = self._view = None


class _Each(Generic[Seen, View]):
    """A view of each object seen: layers have few different shapes of experts, in turn."""

    def __init__(self, make: Callable[[Seen], View]) -> None:
        self._make = make
        # By identity: to hash a shape's fields takes longer than a call. The objects are kept, so
        # that no other one can come by their identity.
        self._views: dict[int, tuple[Seen, View]] = {}

    def of(self, seen: Seen) -> View:
        found = self._views.get(id(seen))
        if found is None:
            found = self._views[id(seen)] = seen, self._make(seen)
        return found[1]


class _Routing:
    """Where routers write, for passes of T tokens."""

    def __init__(self, tokens: int, hidden: int, k: int) -> None:
        x = np.empty((tokens, hidden), dtype=np.float32)
        ids, ids_ahead = np.empty((2, tokens, k), dtype=np.int32)
        weights = np.empty((tokens, k), dtype=np.float32)
        self.shape = tokens, hidden, k
        self.nbytes = x.nbytes + ids.nbytes + ids_ahead.nbytes + weights.nbytes
        self.plain = Routed(x, ids, weights, None)
        self.with_ahead = Routed(x, ids, weights, ids_ahead)
        self.view = _native.RoutedView(x, ids, weights)
        self.view_ahead = _native.RoutedView(x, ids_ahead, weights)


class CpuParts:
    """The layer parts of flashmoe.ops.base.Ops, for CpuOps."""

    clock: PhaseClock
    pool: _native.Pool

    def __init__(self) -> None:
        self._space = _native.PartSpace()
        self._bound: dict[object, Any] = {}  # by weights, which compare by identity
        self._token_moe: dict[RouterWeights, _native.TokenMoePart] = {}
        self._routing: _Routing | None = None
        self._h = _Latest(_native.FloatRows)
        self._x = _Latest(_native.FloatRows)
        self._weights = _Latest(_native.FloatRows)
        self._records = _Latest(_native.RecordsView)
        self._logits = _Latest(_native.FloatRows)
        self._rope = _Latest(_rope_view)
        self.layout = _Each(_expert_layout)

    @property
    def part_bytes(self) -> int:
        """Bytes of the work space so far."""
        return self._space.nbytes + (self._routing.nbytes if self._routing else 0)

    def add_attention(
        self,
        h: Floats,
        weights: AttentionWeights,
        rope: tuple[Floats, Floats],
        spans: KvSpans,
    ) -> None:
        part = self._bound.get(weights) or self._bind(weights, _attention_part)
        at = [(begin, end, start, s.handle or _bind_kv(s)) for begin, end, start, s in spans]
        h_view, rope_view = self._h.of(h), self._rope.of(rope)
        self.clock.add(part.add_to(self.pool, self._space, h_view, rope_view, at), "attention")

    def add_gated_delta(self, h: Floats, weights: GatedDeltaWeights, spans: RecurrentSpans) -> None:
        part = self._bound.get(weights) or self._bind(weights, _delta_part)
        at = [(begin, end, start, s.handle or _bind_delta(s)) for begin, end, start, s in spans]
        self.clock.add(part.add_to(self.pool, self._space, self._h.of(h), at), "delta")

    def norm_and_route(
        self, h: Floats, weights: RouterWeights, ahead: RouterWeights | None = None
    ) -> Routed:
        part = self._bound.get(weights) or self._bind(weights, _router_part)
        routing = self._routing_for(len(h), h.shape[1], weights.num_experts_per_tok)
        view = self._h.of(h)
        self.clock.add(part.route(self.pool, self._space, view, routing.view), "router")
        if ahead is None:
            return routing.plain
        part = self._bound.get(ahead) or self._bind(ahead, _router_part)
        seconds = part.route_ahead(self.pool, self._space, view, routing.view_ahead)
        self.clock.add(seconds, "router")
        return routing.with_ahead

    def route_or_add_token(
        self,
        h: Floats,
        router: RouterWeights,
        shared: SharedExpertWeights | None,
        layer: int,
        residents: Residents,
    ) -> Routed | None:
        part = self._token_moe.get(router)
        if part is None:
            part = self._token_moe[router] = self._token_part(router, shared, layer, residents)
        routing = self._routing_for(1, h.shape[1], router.num_experts_per_tok)
        view = self._h.of(h)
        done, routed_s, shared_s, experts_s = part.add_to(
            self.pool, self._space, view, routing.view
        )
        self.clock.add(routed_s, "router")
        self.clock.add(experts_s, "experts")
        if shared is not None:
            self.clock.add(shared_s, "shared")
        return None if done else routing.plain

    def add_shared_expert(self, h: Floats, x: Floats, weights: SharedExpertWeights) -> None:
        part = self._bound.get(weights) or self._bind(weights, _shared_part)
        seconds = part.add_to(self.pool, self._space, self._x.of(x), self._h.of(h))
        self.clock.add(seconds, "shared")

    def add_token_experts(
        self,
        h: Floats,
        x: Floats,
        shape: ExpertShape,
        addresses: NDArray[np.uint64],
        weights: Floats,
    ) -> None:
        layout = self.layout.of(shape)
        records = self._records.of(addresses)
        views = self._x.of(x), records, self._weights.of(weights), self._h.of(h)
        seconds = _native.add_token_experts(self.pool, self._space, layout, *views)
        self.clock.add(seconds, "experts")

    def head(self, h: Floats, weights: HeadWeights, out: Floats) -> None:
        part = self._bound.get(weights) or self._bind(weights, _head_part)
        views = self._h.of(h), self._logits.of(out)
        self.clock.add(part.logits(self.pool, self._space, *views), "head")
        if weights.softcap:
            softcap(out, weights.softcap)

    def all_finite(self, x: Floats) -> bool:
        start = perf_counter()
        finite = _native.all_finite(x)
        self.clock.add(perf_counter() - start, "head")
        return finite

    def release(self) -> None:
        self._token_moe.clear()
        self._bound.clear()
        self._routing = None
        for latest in (self._h, self._x, self._weights, self._records, self._logits):
            latest.forget()
        self._rope.forget()

    def _bind(self, weights: Any, make: Callable[[Any], Any]) -> Any:
        part = self._bound[weights] = make(weights)
        return part

    def _token_part(
        self,
        router: RouterWeights,
        shared: SharedExpertWeights | None,
        layer: int,
        residents: Residents,
    ) -> _native.TokenMoePart:
        routing = self._bound.get(router) or self._bind(router, _router_part)
        sharing: _native.SharedPart | None = None
        if shared is not None:
            sharing = self._bound.get(shared) or self._bind(shared, _shared_part)
        layout = self.layout.of(residents.shapes[layer])
        return _native.TokenMoePart(routing, sharing, residents.table, layer, layout)

    def _routing_for(self, tokens: int, hidden: int, k: int) -> _Routing:
        if self._routing is None or self._routing.shape != (tokens, hidden, k):
            self._routing = None  # free before taking the other one
            self._routing = _Routing(tokens, hidden, k)
        return self._routing


def _rope_view(rope: tuple[Floats, Floats]) -> _native.RopeView:
    return _native.RopeView(*rope)


def _bind_kv(state: KvState) -> _native.KvView:
    view = state.handle = _native.KvView(state.k, state.v)
    return view


def _bind_delta(state: RecurrentState) -> _native.DeltaView:
    view = state.handle = _native.DeltaView(state.conv, state.s)
    return view


def _attention_part(w: AttentionWeights) -> _native.AttentionPart:
    matrices = w.q_proj, w.k_proj, w.v_proj, w.o_proj
    norms = w.q_norm, w.k_norm
    q, k, v, o = w.biases or (None, None, None, None)
    return _native.AttentionPart(
        w.norm,
        w.eps,
        *matrices,
        *norms,
        w.head_dim,
        w.scale,
        w.gated,
        q,
        k,
        v,
        o,
        w.sinks,
        w.window,
    )


def _delta_part(w: GatedDeltaWeights) -> _native.DeltaPart:
    matrices = w.in_proj_qkv, w.in_proj_z, w.in_proj_a, w.in_proj_b, w.out_proj
    vectors = w.conv1d, w.a_log, w.dt_bias, w.norm
    return _native.DeltaPart(w.input_norm, w.eps, *matrices, *vectors, w.num_key_heads)


def _router_part(w: RouterWeights) -> _native.RouterPart:
    choice = w.num_experts_per_tok, w.renormalize, w.bias
    if w.sigmoid is None:
        return _native.RouterPart(w.norm, w.eps, w.gate, *choice)
    s = w.sigmoid
    grouped = *choice, s.correction, s.groups, s.chosen_groups, s.scale
    return _native.RouterPart(w.norm, w.eps, w.gate, *grouped)


def _shared_part(w: SharedExpertWeights) -> _native.SharedPart:
    return _native.SharedPart(w.gate_up, w.down, w.gate)


def _head_part(w: HeadWeights) -> _native.HeadPart:
    return _native.HeadPart(w.norm, w.eps, w.lm_head)


def _expert_layout(shape: ExpertShape) -> _native.ExpertLayout:
    return _native.ExpertLayout(
        shape.gate_up.name,
        shape.gate_up.group,
        shape.down.name,
        shape.down.group,
        shape.hidden_size,
        shape.intermediate_size,
        shape.down_offset,
        shape.activation,
        shape.bias_offset,
    )
