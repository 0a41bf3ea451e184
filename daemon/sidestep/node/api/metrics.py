"""The node's metrics for Prometheus, generated from the data of `sidestep status`; docs/metrics.md lists them.

Nothing is counted here: every scrape is generated from the current status. Counters of a pod restart at 0 with its
proxy, which Prometheus treats as a reset. Label values are bounded: pods and intercepts are those of this node
(`sidestep.dev/max-pods`), events and anomalies are fixed words. Beyond a number of values per proxy, further ones are
summed as `other`, so that a compromised proxy cannot flood a time series database. No label contains a client or a
path.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sidestep.aio.meter import BOUNDS
from sidestep.node.proxies.sanitising import counters
from sidestep.tunnel.views import AnswersView, LoopView, PodView, StatusView

_INSPECTION = "inspection_"
_BYPASSED = "inspection_bypassed_"
_CLOSED = "inspection_closed_"

INGRESS = "ingress"
EGRESS = "egress"
"""Values of the label `direction`: connections that the pod accepts, and those that it makes."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class StatusCollector(Collector):
    """Metric families of one status."""

    def __init__(self, status: StatusView) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Yield all metric families, as `CollectorRegistry` expects."""
        status = self._status
        node = status.node
        info = GaugeMetricFamily("sidestep_build_info", "The daemon; always 1.", labels=("version", "node"))
        info.add_metric((node.version, node.name), 1)
        yield info
        yield GaugeMetricFamily("sidestep_uptime_seconds", "Seconds since the daemon started.", value=node.uptime)
        yield GaugeMetricFamily("sidestep_target_pods", "Pods that are or may be steered.", value=len(status.pods))
        yield GaugeMetricFamily("sidestep_intercepts", "Intercepts and wiretaps.", value=len(status.intercepts))
        totals = CounterMetricFamily("sidestep_node", "What happened on the node.", labels=("what",))
        for name, count in sorted(node.counters.items()):
            totals.add_metric((name,), count)
        yield totals
        yield _turns(node.loop)
        yield from _answers(node.answers)
        conditions = GaugeMetricFamily("sidestep_conditions", "Conditions that hold now.", labels=("type",))
        kinds = [condition.type for condition in status.conditions]
        for kind in sorted(set(kinds)):
            conditions.add_metric((kind,), kinds.count(kind))
        yield conditions
        yield from self._pods()
        yield from self._intercepts()

    def _pods(self) -> Iterator[Metric]:
        labels = ("namespace", "pod")
        up = GaugeMetricFamily("sidestep_proxy_up", "Whether the pod's proxy runs.", labels=labels)
        connections = GaugeMetricFamily("sidestep_proxy_connections", "Client connections open now.", labels=labels)
        steered = GaugeMetricFamily("sidestep_steered_ports", "Ports steered now.", labels=labels)
        events = CounterMetricFamily(
            "sidestep_proxy_events", "What the proxy did.", labels=(*labels, "direction", "event")
        )
        anomalies = CounterMetricFamily(
            "sidestep_proxy_anomalies", "Connections that were passed through, by reason.", labels=(*labels, "reason")
        )
        uninspected = CounterMetricFamily(
            "sidestep_inspection_uninspected_seconds",
            "Seconds for which ports that have inspection policies were open or closed uninspected.",
            labels=(*labels, "outcome", "reason"),
        )
        inspected = _InspectionMetrics((*labels, "direction"))
        engines = _EngineMetrics(labels)
        outbound = _OutboundMetrics(labels)
        for pod in self._status.pods:
            names = (pod.namespace, pod.name)
            for each in pod.uninspected:
                uninspected.add_metric((*names, each.outcome, each.reason), each.seconds)
            up.add_metric(names, pod.proxy == "running")
            steered.add_metric(names, len(pod.steered))
            counts = dict(pod.counters)
            connections.add_metric(names, counts.pop("connections", 0))
            engines.take(names, pod)
            outbound.take(names, pod)
            for direction, counted in (
                (INGRESS, counts),
                (EGRESS, {} if pod.outbound is None else dict(pod.outbound.counters)),
            ):
                inspected.take((*names, direction), counted)
                for word, count in sorted(counters(counted).items()):
                    events.add_metric((*names, direction, word), count)
            for word, count in sorted(counters(pod.anomalies).items()):
                anomalies.add_metric((*names, word), count)
        yield from (up, connections, steered, events, anomalies, uninspected)
        yield from (*inspected.families, *engines.families, *outbound.families)

    def _intercepts(self) -> Iterator[Metric]:
        labels = ("namespace", "name", "kind")
        connections = GaugeMetricFamily("sidestep_session_connections", "Handler connections open now.", labels=labels)
        events = CounterMetricFamily("sidestep_session_events", "What a session carried.", labels=(*labels, "event"))
        for intercept in self._status.intercepts:
            names = (intercept.namespace, intercept.name, intercept.kind)
            counts = dict(intercept.counters)
            connections.add_metric(names, counts.pop("open", 0))
            for word, count in sorted(counters(counts).items()):
                events.add_metric((*names, word), count)
        yield from (connections, events)


class _InspectionMetrics:
    """What inspection counted, of all pods."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._hits = CounterMetricFamily(
            "sidestep_inspection_hits", "Hits of inspection rules, by what was done.", labels=(*labels, "action")
        )
        self._bypassed = CounterMetricFamily(
            "sidestep_inspection_bypassed", "What passed without being inspected.", labels=(*labels, "reason")
        )
        self._closed = CounterMetricFamily(
            "sidestep_inspection_closed", "What was refused because it cannot be read.", labels=(*labels, "reason")
        )
        self.families = (self._hits, self._bypassed, self._closed)

    def take(self, names: tuple[str, ...], counts: dict[str, int]) -> None:
        """Take the counters of inspection out of those of a pod (`proxy.connection.inspection_counts`)."""
        found = {word: counts.pop(word) for word in [*counts] if word.startswith(_INSPECTION)}
        for prefix, family in ((_BYPASSED, self._bypassed), (_CLOSED, self._closed), (_INSPECTION, self._hits)):
            part = {word.removeprefix(prefix): found.pop(word) for word in [*found] if word.startswith(prefix)}
            for word, count in sorted(counters(part).items()):
                family.add_metric((*names, word), count)


class _EngineMetrics:
    """The engines beside the proxies, of all pods. Their connections are among the events of the proxies."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        labels = (*labels, "engine")
        self._up = GaugeMetricFamily("sidestep_engine_up", "Whether the engine runs.", labels=labels)
        self._memory = GaugeMetricFamily("sidestep_engine_memory_bytes", "Bytes resident in it now.", labels=labels)
        self._rules = GaugeMetricFamily("sidestep_engine_rules", "Rules that it has.", labels=labels)
        self._restarts = CounterMetricFamily(
            "sidestep_engine_restarts",
            "How often it ended while it was wanted, or could not be started.",
            labels=labels,
        )
        self.families = (self._up, self._memory, self._rules, self._restarts)

    def take(self, names: tuple[str, ...], pod: PodView) -> None:
        """Take the engines of a pod."""
        for each in pod.engines:
            labels = (*names, each.kind)
            self._up.add_metric(labels, each.state == "running")
            self._memory.add_metric(labels, each.memory)
            self._rules.add_metric(labels, each.rules)
            self._restarts.add_metric(labels, each.restarts)


class _OutboundMetrics:
    """Connections that pods make, as the kernel counts them. What the proxies count is among their events."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._open = GaugeMetricFamily(
            "sidestep_outbound_connections", "Outbound connections that are sent to the proxy and open.", labels=labels
        )
        self._verdicts = CounterMetricFamily(
            "sidestep_outbound_verdicts",
            "What became of outbound connections in the kernel.",
            labels=(*labels, "verdict"),
        )
        self.families = (self._open, self._verdicts)

    def take(self, names: tuple[str, ...], pod: PodView) -> None:
        """Take those of a pod."""
        if pod.outbound is None:
            return
        self._open.add_metric(names, pod.outbound.open)
        for word, count in sorted(counters(pod.outbound.verdicts).items()):
            self._verdicts.add_metric((*names, word), count)


def _turns(loop: LoopView) -> Metric:
    """Return the histogram of event loop turns. A long turn is a stall, during which nothing is served."""
    return HistogramMetricFamily(
        "sidestep_loop_stall_seconds",
        "Turns of the daemon's event loop, in which nothing else is served.",
        buckets=_buckets(loop.turns or (0,) * (len(BOUNDS) + 1)),
        sum_value=loop.seconds,
    )


def _answers(answers: tuple[AnswersView, ...]) -> Iterator[Metric]:
    """Yield what sessions were told of answers."""
    durations = HistogramMetricFamily(
        "sidestep_request_duration_seconds",
        "From a request's head to the end of its answer, of requests that sessions were told of.",
        labels=("kind", "by", "status"),
    )
    sizes = CounterMetricFamily(
        "sidestep_request_body_bytes",
        "Bytes of the bodies of these requests and of their answers.",
        labels=("kind", "by", "status", "direction"),
    )
    for each in answers:
        labels = (each.kind, each.by, each.status)
        durations.add_metric(labels, _buckets(each.counts), each.seconds)
        sizes.add_metric((*labels, "sent"), each.sent)
        sizes.add_metric((*labels, "received"), each.received)
    yield from (durations, sizes)


def _buckets(counts: Iterable[int]) -> list[tuple[str, float]]:
    bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, itertools.accumulate(counts), strict=True))


def exposition(status: StatusView | None) -> bytes:
    """Return the text format (https://prometheus.io/docs/instrumenting/exposition_formats/); empty without a status."""
    registry = CollectorRegistry(auto_describe=False)
    if status is not None:
        registry.register(StatusCollector(status))
        ProcessCollector(registry=registry)
    return generate_latest(registry)
