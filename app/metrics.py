"""The text of `GET /metrics` for Prometheus: counters and memory at the moment of the request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sessions.counters import Histogram

if TYPE_CHECKING:
    from app.http.connection_limits import Connections
    from app.process_memory import ProcessMeter
    from sessions.manager import SessionManager

NO_OWNER = ""  # owns no conversation; the totals of memory are those of the machine


class Metrics:
    """One registry for one server. Any thread."""

    def __init__(self, manager: SessionManager, process: ProcessMeter, connections: Connections) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Readings(manager, process))
        self._registry.register(_ConnectionCounts(connections))
        self._requests = Counter(
            "keepwarm_requests", "API requests by status.", ["path", "status"], registry=self._registry
        )
        self._refusals = Counter(
            "keepwarm_refusals", "Refused API requests by reason.", ["reason"], registry=self._registry
        )

    def show_line(self, waiting: Callable[[], int]) -> None:
        """`waiting`: how many API requests wait now until another one of their key ends."""
        gauge = Gauge(
            "keepwarm_requests_in_line",
            "API requests that wait until another one of their key ends.",
            registry=self._registry,
        )
        gauge.set_function(waiting)

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Readings(Collector):
    def __init__(self, manager: SessionManager, process: ProcessMeter) -> None:
        self._manager = manager
        self._process = process

    def collect(self) -> Iterator[Metric]:
        counts = self._manager.counters.snapshot()
        yield CounterMetricFamily("keepwarm_turns", "Answered turns.", counts.turns)
        tokens = CounterMetricFamily("keepwarm_tokens", "Tokens fed, reused from a KV, and sampled.", labels=["kind"])
        for kind in ("fed", "reused", "sampled"):
            tokens.add_metric([kind], getattr(counts, f"{kind}_tokens"))
        yield tokens
        misses = CounterMetricFamily(
            "keepwarm_misses", "Turns that fed more tokens than they added.", labels=["reason"]
        )
        for reason, count in counts.misses.items():
            misses.add_metric([reason], count)
        yield misses
        yield from self._moves()
        yield from self._memory()
        yield _histogram(
            "keepwarm_ttft_seconds", "Time to the first token, including the wait in the queue.", counts.ttft
        )
        yield _histogram("keepwarm_inter_token_seconds", "Time between two tokens of an answer.", counts.gap)

    def _moves(self) -> Iterator[Metric]:
        labels = ["origin", "target"]
        moves = CounterMetricFamily(
            "keepwarm_moves", "KVs moved between tiers; cold means that no tier holds it.", labels=labels
        )
        seconds = CounterMetricFamily("keepwarm_move_seconds", "Time the moves took.", labels=labels)
        size = CounterMetricFamily("keepwarm_move_bytes", "Bytes moved.", labels=labels)
        for (origin, target), move in self._manager.counters.snapshot().moves.items():
            route = [origin.value, target.value]
            moves.add_metric(route, move.count)
            seconds.add_metric(route, move.seconds)
            size.add_metric(route, move.size_bytes)
        yield from (moves, seconds, size)
        writes = self._manager.counters.snapshot().writes
        yield CounterMetricFamily("keepwarm_writes", "KV files written in the background after turns.", writes.count)
        yield CounterMetricFamily("keepwarm_write_seconds", "Time the writes took.", writes.seconds)
        yield CounterMetricFamily("keepwarm_write_bytes", "Bytes written.", writes.size_bytes)

    def _memory(self) -> Iterator[Metric]:
        view = self._manager.memory_view(NO_OWNER)
        held = GaugeMetricFamily("keepwarm_kv_bytes", "Bytes of KV held, by tier.", labels=["tier", "kind"])
        budget = GaugeMetricFamily("keepwarm_kv_budget_bytes", "Bytes that each tier may hold.", labels=["tier"])
        held.add_metric(["device", "used"], view.device_used_bytes)
        held.add_metric(["device", "reserved"], view.device_reserved_bytes)
        held.add_metric(["host", "used"], view.host_used_bytes)
        held.add_metric(["host", "reserved"], view.host_reserved_bytes)
        held.add_metric(["disk", "used"], view.disk_used_bytes - view.disk_other_bytes)
        held.add_metric(["disk", "other_models"], view.disk_other_bytes)
        budget.add_metric(["device"], view.device_budget_bytes)
        budget.add_metric(["host"], view.host_budget_bytes)
        budget.add_metric(["disk"], view.disk_budget_bytes)
        yield from (held, budget)
        memory = self._process.read(self._manager.info, view)
        yield GaugeMetricFamily(
            "keepwarm_process_resident_bytes", "This machine's memory that the process holds.", memory.resident_bytes
        )
        parts = GaugeMetricFamily(
            "keepwarm_process_memory_bytes",
            "The same by purpose; program is what was held before the model was loaded, other is the rest.",
            labels=["part"],
        )
        for part in ("weights", "kv", "program", "other"):
            parts.add_metric([part], getattr(memory, f"{part}_bytes"))
        yield parts
        queue = GaugeMetricFamily("keepwarm_queue", "Answers being written, and waiting for it.", labels=["state"])
        running, waiting = self._manager.open_answers()
        queue.add_metric(["waiting"], waiting)
        queue.add_metric(["running"], running)
        yield queue
        yield from self._servers()
        storage = self._manager.storage
        yield GaugeMetricFamily("keepwarm_can_store", "1 while messages can be stored, else 0.", int(storage.can_store))

    def _servers(self) -> Iterator[Metric]:
        """Those of a remote engine."""
        servers = self._manager.servers
        if not servers:
            return
        up = GaugeMetricFamily("keepwarm_engine_up", "1 while a remote engine can be used, else 0.", labels=["engine"])
        asked = CounterMetricFamily("keepwarm_engine_requests", "Answers asked of a remote engine.", labels=["engine"])
        failed = CounterMetricFamily(
            "keepwarm_engine_failures", "Answers that a remote engine did not finish.", labels=["engine"]
        )
        for server in servers:
            up.add_metric([server.address], int(not server.trouble))
            asked.add_metric([server.address], server.requests)
            failed.add_metric([server.address], server.failures)
        yield from (up, asked, failed)


class _ConnectionCounts(Collector):
    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def collect(self) -> Iterator[Metric]:
        counts = self._connections.counts()
        yield GaugeMetricFamily("keepwarm_connections", "Open connections.", counts.open)
        yield GaugeMetricFamily("keepwarm_connections_limit", "Most connections that may be open.", counts.most)
        ended = CounterMetricFamily(
            "keepwarm_connections_ended", "Refused or cut connections by reason.", labels=["reason"]
        )
        for reason, count in counts.ended.items():
            ended.add_metric([reason], count)
        yield ended


def _histogram(name: str, documentation: str, found: Histogram) -> HistogramMetricFamily:
    bounds = [*(str(bound) for bound in found.bounds_s), "+Inf"]
    buckets = list(zip(bounds, accumulate(found.counts), strict=True))
    return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=found.sum_s)
