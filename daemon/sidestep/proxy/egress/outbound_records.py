"""Makes EVE records of one connection that the pod makes, tells sessions of it, and counts what was found.

    ClientHello                `tls`, once the server has answered: with the version that it has chosen and, in TLS
                               1.2, its certificate, as it shows it. If it does not answer, at the end
    request to CONNECT         `http`, for sessions only
    hit of a rule              `alert` for Alert and Block, unless the rule's rate limit holds it back; Log is in `flow`
    what could not be judged   `anomaly`
    end of the connection      `flow`

Each has `sidestep.direction` "egress", the pod as its source, and in `sidestep.host` the name that the client gave.
None has a byte of what the connection carries, but for the head of a request, with credentials redacted.

The log gets those of connections that a policy is about. A session that listens (`sidestep inspect --egress`) gets
those of every connection; one with a filter on requests gets those whose CONNECT matches, and one that wants alerts
gets `alert` and `anomaly`. A session of heads (`sidestep flows --egress`) gets a line for each connection
(`flow_line`). Of connections whose requests are read `connection.inspection_records` makes the records.
"""

from __future__ import annotations

import secrets
import socket
import time
from typing import Final

from sidestep.engine.outbound import Decision, Seen
from sidestep.model.intercept import Live
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.inspected_exchange import Hit
from sidestep.policy.redaction import redact
from sidestep.policy.route import Rule
from sidestep.protocols import eve, tls_weakness
from sidestep.protocols.certificate_facts import facts
from sidestep.protocols.eve_records import (
    Anomaly,
    Detail,
    Kubernetes,
    Origin,
    RecordedAction,
    Sidestep,
    TlsDetails,
)
from sidestep.protocols.server_hello import NOTHING, NoServerHello, ServerHello, parse
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.flow_counts import flow_of
from sidestep.proxy.connection.inspection_counts import InspectionCounts
from sidestep.proxy.control.messages import MAX_TEXT, LoggedRequest
from sidestep.proxy.control.record_queue import RecordQueue
from sidestep.proxy.egress.outbound_policies import OutboundPolicies
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
    """The records of one connection. The port of `policies` has the counters, and knows the sessions."""

    __slots__ = (
        "_began", "_decision", "_endpoints", "_listeners", "_policies", "_port", "_queue", "_said", "_to_log", "flow",
        "seen",
    )  # fmt: skip

    def __init__(self, policies: OutboundPolicies, endpoints: Endpoints, queue: RecordQueue) -> None:
        self._policies = policies
        self._port = policies.port
        self._endpoints = endpoints
        self._queue = queue
        self.flow = secrets.randbits(FLOW_BITS)
        self._began = time.time_ns()
        self._decision = Decision()
        self.seen = Seen()
        self._to_log = False
        self._listeners: tuple[Rule, ...] = ()
        """The sessions that get records of this connection."""
        self._said: bytearray | None = None
        """What the server has said, while `tls` waits for it."""

    def decided(self, decision: Decision, seen: Seen) -> None:
        """Tell what was decided, and why. Of a connection that is opened only what rules about connections say."""
        self._decision, self.seen = decision, seen
        self._to_log = decision.is_judged and self._queue.wanted
        listeners = self._port.listeners
        if listeners:
            self._listeners = tuple(rule for rule in listeners if matches(rule, seen))
        if decision.opening is None:
            self.offered(is_heard=not (decision.blocks or decision.closes))
        if not decision.is_judged:
            return
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
            self._put(told_of, Sidestep(action=action, inspected=False, reason=decision.reason), is_alert=True)

    def offered(self, *, is_heard: bool = False) -> None:
        """Tell what the client of a connection that is not opened offers, or asks for.

        `is_heard`: what the server answers will be heard, and is told with it.
        """
        if self.seen.hello is not None and (self._to_log or self._listeners):
            if is_heard:
                self._said = bytearray()
            else:
                self._tell_tls(NOTHING)
        elif self.seen.request is not None and self._listeners:
            self._tell_request()

    @property
    def hears(self) -> bool:
        """Whether the server's first bytes are to be given to `hear`."""
        return self._said is not None

    def hear(self, data: bytes) -> bool:
        """Take what the server says; returns whether more of it is wanted."""
        if self._said is None:
            return False
        self._said += data
        answer = parse(bytes(self._said))
        if answer is not None:
            self._tell_tls(answer)
        return answer is None

    def _tell_tls(self, answer: ServerHello | NoServerHello) -> None:
        """Tell what a client offers, and what its server has chosen."""
        self._said = None
        hello = self.seen.hello
        if hello is None:
            return
        weak = tls_weakness.of_offer(hello)
        if isinstance(answer, NoServerHello):
            told = eve.tls(hello, version=_UNDETERMINED)
        else:
            weak = tuple(dict.fromkeys((*weak, *tls_weakness.of_connection(answer.version, answer.suite))))
            shown = facts(answer.certificate) if answer.certificate else None
            told = eve.tls(hello, version=answer.version, server=shown, resumed=answer.resumed)
        has_ech = hello.encrypted_client_hello
        details = TlsDetails(weak=weak, ech=has_ech) if weak or has_ech else None
        self._put(told, Sidestep(inspected=self._decision.is_judged, tls=details), is_alert=False)

    def _hit(self, hit: Hit) -> None:
        name = "inspection_would_block" if hit.would_block else _COUNTERS[hit.outcome]
        self._port.counters[name] += 1
        if hit.told and hit.outcome is not Outcome.LOG:
            alert = eve.alert(hit.policy, hit.rule, blocked=hit.outcome is Outcome.BLOCK)
            self._put(alert, _decided(hit), is_alert=True)

    def _tell_request(self) -> None:
        """Tell sessions of a request in clear that begins a tunnel."""
        request = self.seen.request
        if request is None:
            return
        told = eve.http(
            method=request.method,
            target=request.target,
            authority=request.authority,
            fields=request.fields,
            redaction=self._policies.redaction,
        )
        self._put(told, Sidestep(inspected=self._decision.is_judged), is_alert=False, to_log=False)

    def watch(self, client: socket.socket) -> PlainStream:
        """Return the client's stream, of whose end a record is made before it is closed."""
        if not (self._to_log or self._listeners):
            return PlainStream(client)
        return WatchedStream(client, lambda: self.over(client))

    def over(self, client: socket.socket) -> None:
        """Tell of the end of the connection, before it is closed."""
        if not (self._to_log or self._listeners):
            return
        if self._said is not None:
            self._tell_tls(NOTHING)
        hits = self._decision.verdict.hits
        alerted = any(hit.outcome is not Outcome.LOG for hit in hits)
        flow = flow_of(client, began=self._began, now=time.time_ns(), alerted=alerted)
        if flow is None:
            return
        logged = next((hit for hit in hits if hit.told and hit.outcome is Outcome.LOG), None)
        inspected = self._decision.is_judged and not self._decision.reason
        self._put(flow, Sidestep(inspected=inspected) if logged is None else _decided(logged), is_alert=False)

    def _put(self, detail: Detail, decided: Sidestep, *, is_alert: bool, to_log: bool = True) -> None:
        to_log = to_log and self._to_log
        told = [rule.uid for rule in self._listeners if is_alert or rule.records is Live.ALL]
        if not (to_log or told):
            return
        ends = self._endpoints
        origin = Origin(
            flow_id=self.flow,
            client=(ends.client, ends.client_port),
            server=(ends.host, ends.port),
            protocol=self.seen.protocol,
            kubernetes=_NOBODY,
        )
        made = eve.record(time.time_ns(), origin, detail, sidestep=eve.outwards(decided, self.seen.name))
        if to_log:
            self._queue.add(made)
        if told:
            self._queue.live.add(made, told)


def matches(rule: Rule, seen: Seen) -> bool:
    """Whether a session's filter is about a connection: about its request to CONNECT or, without one, about all."""
    request = seen.request
    if request is None:
        return rule.matches(b"", b"", ())
    return rule.matches(request.method, request.target.partition(b"?")[0], request.fields)


def flow_line(rule: Rule, endpoints: Endpoints, seen: Seen) -> LoggedRequest:
    """The line of a connection for a session of heads."""
    request = seen.request
    fields = () if request is None else redact(request.fields)
    return LoggedRequest(
        rule.uid,
        endpoints.port,
        endpoints.client,
        endpoints.client_port,
        "" if request is None else _text(request.method),
        "" if request is None else _text(request.target),
        seen.name if request is None else _text(request.authority),
        copied=True,
        fields=tuple((_text(name), _text(value)) for name, value in fields),
        server=endpoints.host,
        protocol=seen.protocol or "tcp",
    )


def _decided(hit: Hit) -> Sidestep:
    action = RecordedAction.WOULD_BLOCK if hit.would_block else _ACTIONS[hit.outcome]
    return Sidestep(policy=hit.policy, rule=hit.rule, action=action, inspected=True)


def _text(value: bytes) -> str:
    """Text for people; see `messages.LoggedRequest`."""
    return value[:MAX_TEXT].decode("utf-8", "replace")
