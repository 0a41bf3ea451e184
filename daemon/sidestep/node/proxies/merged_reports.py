"""Makes one proxy of what the processes of a pod say of themselves: the pod's owner hears of sums.

A message of one process is passed on as the pod's:

    heartbeat   the sum of what all processes have counted, those that have ended included
    hindrances  those of a port that any process has; those of a whole process that all have which serve: otherwise
                somebody takes new connections. What they are about then reaches the app itself
    condition   stands until none of the processes states it any more

A process that leaves the others takes no new connections: what hinders it, and its conditions, do not count. When the
last process has ended, everything begins anew: its successor counts from zero, as a single one does.

Messages are sanitised before they come here. `worker` is the number of the process that sent one; numbers are used
again. The state has the size of what the processes of one pod may say of its ports.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from sidestep.model.condition import ConditionType
from sidestep.node.proxies.proxy_handler import ProxyHandler
from sidestep.proxy.control.messages import Heartbeat, Report
from sidestep.snapshots.hindrance import Hindrance

_TYPES = frozenset(each.value for each in ConditionType)


@dataclass(slots=True)
class _Counts:
    """What one process has counted, or all that have ended: as a `Heartbeat` has it."""

    connections: int = 0
    ports: dict[int, dict[str, int]] = field(default_factory=dict)
    anomalies: dict[str, int] = field(default_factory=dict)


class MergedReports:
    """Those of one pod. `handler` is the pod's owner."""

    def __init__(self, handler: ProxyHandler) -> None:
        self._handler = handler
        self._counts: dict[int, _Counts] = {}
        self._ended = _Counts()
        self._hindrances: dict[int, tuple[Hindrance, ...]] = {}
        self._told: tuple[Hindrance, ...] = ()
        """Those that the owner was told last."""
        self._conditions: dict[tuple[int, str], dict[int, str]] = {}
        """Text by worker, of conditions that are stated."""
        self._serving: frozenset[int] = frozenset()
        self._leaving: frozenset[int] = frozenset()

    def workers(self, *, serving: Collection[int], leaving: Collection[int]) -> None:
        """The workers that run and take connections are these now, and these leave."""
        self._serving, self._leaving = frozenset(serving), frozenset(leaving)
        for worker in self._leaving:
            self._hindrances.pop(worker, None)
            self._take_back(worker)
        self._tell_hindrances()

    def keep_ports(self, ports: Collection[int]) -> None:
        """Forget what hinders ports that are not among these: processes forget it without a word."""
        for worker, hindrances in self._hindrances.items():
            self._hindrances[worker] = tuple(each for each in hindrances if not each.port or each.port in ports)
        self._tell_hindrances()

    def heartbeat(self, worker: int, beat: Heartbeat, *, ports: Collection[int]) -> None:
        """Take the counters of a process; of these ports, those that the message does not name keep theirs."""
        counts = self._counts.setdefault(worker, _Counts())
        counts.connections, counts.anomalies = beat.connections, beat.anomalies
        kept = {number: each for number, each in counts.ports.items() if number in ports}
        counts.ports = kept | beat.ports
        if self._is_single:
            self._handler.on_heartbeat(beat)
        else:
            self._handler.on_heartbeat(self._sum(beat.ports))

    def hindered(self, worker: int, hindrances: tuple[Hindrance, ...]) -> None:
        """Take all that keeps a process from serving."""
        if worker not in self._leaving:
            self._hindrances[worker] = hindrances
            self._tell_hindrances(anew=True)

    def report(self, worker: int, report: Report, *, ports: Collection[int]) -> None:
        """Take a condition of one of these ports."""
        if report.port not in ports or report.type not in _TYPES or worker in self._leaving:
            return
        for key in [key for key in self._conditions if key[0] not in ports]:
            del self._conditions[key]
        texts = self._conditions.setdefault((report.port, report.type), {})
        if report.text:
            texts[worker] = report.text
        else:
            texts.pop(worker, None)
        self._tell(report, texts)

    def process_ended(self, worker: int, *, others: bool) -> None:
        """The process of a worker has ended; `others` of the pod live."""
        counts = self._counts.pop(worker, _Counts())
        self._hindrances.pop(worker, None)
        if not others:
            self._counts.clear()
            self._ended = _Counts()
            self._hindrances.clear()
            self._conditions.clear()
            if worker in self._serving:
                self._told = ()  # the owner knows from the state
            else:
                self._tell_hindrances()
            return
        self._ended.ports = _added([self._ended.ports, counts.ports])
        self._ended.anomalies = dict(Counter(self._ended.anomalies) + Counter(counts.anomalies))
        if counts.connections:
            self._handler.on_heartbeat(self._sum(counts.ports))
        self._tell_hindrances()
        self._take_back(worker)

    @property
    def _is_single(self) -> bool:
        return len(self._counts) == 1 and not self._ended.ports and not self._ended.anomalies

    def _sum(self, ports: Iterable[int]) -> Heartbeat:
        """The counters of these ports."""
        every = [*self._counts.values(), self._ended]
        told = [{port: each.ports[port] for port in ports if port in each.ports} for each in every]
        anomalies: Counter[str] = Counter()
        for each in every:
            anomalies.update(each.anomalies)
        return Heartbeat(0, sum(each.connections for each in every), _added(told), dict(anomalies))

    def _tell_hindrances(self, *, anew: bool = False) -> None:
        """Tell what hinders the pod, if it has changed or is to be told `anew`."""
        told = {_about(each): each for each in itertools.chain.from_iterable(self._hindrances.values())}
        serving = [{_about(each) for each in self._hindrances.get(worker, ())} for worker in self._serving]
        hindrances = tuple(
            each for about, each in told.items() if each.port or all(about in theirs for theirs in serving)
        )
        if anew or hindrances != self._told:
            self._told = hindrances
            self._handler.on_hindered(hindrances)

    def _take_back(self, worker: int) -> None:
        """A process does not state its conditions any more."""
        for (port, kind), texts in self._conditions.items():
            if texts.pop(worker, ""):
                self._tell(Report(0, port, kind, ""), texts)

    def _tell(self, report: Report, texts: dict[int, str]) -> None:
        """State what any process says of a condition, or take it back."""
        self._handler.on_report(report if report.text else replace(report, text=next(iter(texts.values()), "")))


def _about(hindrance: Hindrance) -> tuple[str, int, int]:
    """What makes two hindrances the same one."""
    return hindrance.kind, hindrance.port, hindrance.family


def _added(every: Iterable[dict[int, dict[str, int]]]) -> dict[int, dict[str, int]]:
    total: dict[int, Counter[str]] = {}
    for ports in every:
        for port, counts in ports.items():
            total.setdefault(port, Counter()).update(counts)
    return {port: dict(counts) for port, counts in total.items()}
