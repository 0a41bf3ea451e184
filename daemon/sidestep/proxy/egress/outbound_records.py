"""Makes EVE records of one connection that the pod makes, and counts what was found.

    ClientHello                `tls`; its version is not agreed on yet
    hit of a rule              `alert` for Alert and Block, unless the rule's rate limit holds it back; Log is in `flow`
    what could not be judged   `anomaly`
    end of the connection      `flow`

Each has `sidestep.direction` "egress", the pod as its source, and in `sidestep.host` the name that the client gave.
None has a byte of what the connection carries. Connections that no policy is about leave no record.
"""

from __future__ import annotations

import secrets
import socket
import time
from typing import Final

from sidestep.engine.outbound import Decision, Seen
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.inspected_exchange import Hit
from sidestep.protocols import eve, tls_weakness
from sidestep.protocols.eve_records import (
    Anomaly,
    Detail,
    Kubernetes,
    Origin,
    RecordedAction,
    Sidestep,
    TlsDetails,
)
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.flow_counts import flow_of
from sidestep.proxy.connection.inspection_counts import InspectionCounts
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.control.record_queue import RecordQueue
from sidestep.proxy.io.stream import PlainStream, WatchedStream

FLOW_BITS: Final = 52
"""As `inspection_records.FLOW_BITS`."""
_NOBODY: Final = Kubernetes()
"""The daemon says whose traffic it is."""
_UNDETERMINED: Final = 0
_ACTIONS: Final = {
    Outcome.LOG: RecordedAction.LOG,
    Outcome.ALERT: RecordedAction.ALERT,
    Outcome.BLOCK: RecordedAction.BLOCK,
}
_COUNTERS: Final = {
    Outcome.LOG: "inspection_logged",
    Outcome.ALERT: "inspection_alerted",
    Outcome.BLOCK: "inspection_blocked",
}


class OutboundRecords:
    """The records of one connection. `port` has the counters."""

    __slots__ = ("_began", "_decision", "_endpoints", "_flow", "_port", "_queue", "_seen")

    def __init__(self, port: LivePort, endpoints: Endpoints, queue: RecordQueue) -> None:
        self._port = port
        self._endpoints = endpoints
        self._queue = queue
        self._flow = secrets.randbits(FLOW_BITS)
        self._began = time.time_ns()
        self._decision = Decision()
        self._seen = Seen()

    def decided(self, decision: Decision, seen: Seen) -> None:
        """Tell what was decided, and why."""
        self._decision, self._seen = decision, seen
        if not decision.is_judged:
            return
        if seen.hello is not None:
            weak = tls_weakness.of_offer(seen.hello)
            told = eve.tls(seen.hello, version=_UNDETERMINED)
            self._put(told, Sidestep(inspected=True, tls=TlsDetails(weak=weak) if weak else None))
        for hit in decision.verdict.hits:
            self._hit(hit)
        if decision.reason and not decision.blocks:
            InspectionCounts(self._port.counters).uninspected(decision.reason, closed=decision.closes)
            action = RecordedAction.CLOSE if decision.closes else RecordedAction.PASS
            told_of = Anomaly(
                app_proto=seen.protocol or None,
                type="applayer",
                event=decision.reason,
                layer="proto_parser" if seen.protocol else "proto_detect",
            )
            self._put(told_of, Sidestep(action=action, inspected=False, reason=decision.reason))

    def _hit(self, hit: Hit) -> None:
        name = "inspection_would_block" if hit.would_block else _COUNTERS[hit.outcome]
        self._port.counters[name] += 1
        if hit.told and hit.outcome is not Outcome.LOG:
            alert = eve.alert(hit.policy, hit.rule, blocked=hit.outcome is Outcome.BLOCK)
            self._put(alert, _decided(hit))

    def watch(self, client: socket.socket) -> PlainStream:
        """Return the client's stream, of whose end a record is made before it is closed."""
        if not self._decision.is_judged:
            return PlainStream(client)
        return WatchedStream(client, lambda: self.over(client))

    def over(self, client: socket.socket) -> None:
        """Tell of the end of the connection, before it is closed."""
        if not (self._decision.is_judged and self._queue.wanted):
            return
        hits = self._decision.verdict.hits
        alerted = any(hit.outcome is not Outcome.LOG for hit in hits)
        flow = flow_of(client, began=self._began, now=time.time_ns(), alerted=alerted)
        if flow is not None:
            logged = next((hit for hit in hits if hit.told and hit.outcome is Outcome.LOG), None)
            self._put(flow, Sidestep(inspected=not self._decision.reason) if logged is None else _decided(logged))

    def _put(self, detail: Detail, decided: Sidestep) -> None:
        if not self._queue.wanted:
            return
        ends = self._endpoints
        origin = Origin(
            flow_id=self._flow,
            client=(ends.client, ends.client_port),
            server=(ends.host, ends.port),
            protocol=self._seen.protocol,
            kubernetes=_NOBODY,
        )
        self._queue.add(eve.record(time.time_ns(), origin, detail, sidestep=outwards(decided, self._seen.name)))


def outwards(decided: Sidestep, host: str) -> Sidestep:
    """What was decided, of a connection that the pod makes to a server of this name, "" if that is not known."""
    return Sidestep(
        policy=decided.policy,
        rule=decided.rule,
        action=decided.action,
        inspected=decided.inspected,
        reason=decided.reason,
        tls=decided.tls,
        direction="egress",
        host=host or None,
    )


def _decided(hit: Hit) -> Sidestep:
    action = RecordedAction.WOULD_BLOCK if hit.would_block else _ACTIONS[hit.outcome]
    return Sidestep(policy=hit.policy, rule=hit.rule, action=action, inspected=True)
