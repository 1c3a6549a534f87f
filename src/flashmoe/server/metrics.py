"""Figures for Prometheus: histograms kept here, counters read from the engine when asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flashmoe.generate.request import Usage
from flashmoe.server.worker import WorkerFigures

# From a model in memory to a long prompt on a slow disk.
_FIRST_TOKEN_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
# Counters of the engine: field of WorkerFigures, name, what it counts.
_COUNTERS = (
    ("requests", "flashmoe_requests", "Requests taken by the engine"),
    ("finished", "flashmoe_requests_finished", "Requests answered to the end"),
    ("failed", "flashmoe_requests_failed", "Requests that ended with an error"),
    ("cancelled", "flashmoe_requests_cancelled", "Requests cancelled, by disconnect or shutdown"),
    ("rejected", "flashmoe_requests_rejected", "Requests refused because the queue was full"),
    ("joined", "flashmoe_requests_joined", "Requests that shared the run of an equal one"),
    ("prompt_tokens", "flashmoe_prompt_tokens", "Tokens of prompts that were run"),
    ("completion_tokens", "flashmoe_completion_tokens", "Tokens generated"),
    ("prefix_reused_tokens", "flashmoe_prefix_reused_tokens", "Tokens of prompts not run again"),
    ("hits", "flashmoe_expert_cache_hits", "Wanted experts found in memory"),
    ("misses", "flashmoe_expert_cache_misses", "Wanted experts read from the disk"),
    ("bytes_read", "flashmoe_read_bytes", "Bytes of experts read from the disk"),
    ("disk_wait_seconds", "flashmoe_disk_wait_seconds", "Seconds in which the engine waited"),
)
_GAUGES = (
    ("queue_depth", "flashmoe_queue_depth", "Requests that wait"),
    ("running", "flashmoe_requests_running", "Requests that run"),
)


class Metrics:
    """What /metrics tells."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._first = Histogram(
            "flashmoe_time_to_first_token_seconds",
            "From the arrival of a request to its first token",
            buckets=_FIRST_TOKEN_SECONDS,
            registry=self._registry,
        )
        self._token = Histogram(
            "flashmoe_time_per_token_seconds",
            "Decode time of an answer, per token",
            buckets=_TOKEN_SECONDS,
            registry=self._registry,
        )
        self._responses = Counter(
            "flashmoe_http_responses",
            "Answers by status",
            ("status",),
            registry=self._registry,
        )

    def observe(self, usage: Usage, first_token_seconds: float) -> None:
        """Count one answer."""
        if usage.completion_tokens:
            self._first.observe(first_token_seconds)
        if usage.completion_tokens > 1:
            self._token.observe(usage.decode_seconds / (usage.completion_tokens - 1))

    def count_response(self, status: int) -> None:
        """Count one HTTP answer."""
        self._responses.labels(str(status)).inc()

    def text(self, figures: WorkerFigures | None) -> bytes:
        """Prometheus' text format; figures: the engine's, once there is one."""
        own = generate_latest(self._registry)
        if figures is None:
            return own
        registry = CollectorRegistry()
        registry.register(_Engine(figures))
        return own + generate_latest(registry)


class _Engine(Collector):
    """Counters of the engine as they stand."""

    def __init__(self, figures: WorkerFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        return self._metrics()

    def _metrics(self) -> Iterator[Metric]:
        for field, name, told in _COUNTERS:
            yield CounterMetricFamily(name, told, value=getattr(self._figures, field))
        for field, name, told in _GAUGES:
            yield GaugeMetricFamily(name, told, value=getattr(self._figures, field))
