"""Chooses the engine that relays a connection, and its policies: what it does with the unreadable, who rewrites heads,
who judges requests.

Global wiretaps of a port get its connections whole, beside any other relay. Filtered wiretaps get requests, so on a
port that has one connections are parsed even where a global intercept takes them all; the handler of that intercept
then stands where the app would.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Final

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.firewall import Firewall
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.memory_budget import Budget
from sidestep.engine.mirror.capture_writer import CaptureFacts
from sidestep.engine.mirror.ids_feed import feed_ids
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.live_exchanges import Teller
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.whole_captures import capture_whole
from sidestep.engine.mirror.whole_connection import copy_whole
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.engine.passthrough import WireRelay
from sidestep.engine.relay import Relay
from sidestep.engine.rewriting import ClientCertificate
from sidestep.model.intercept import Snap
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.route import Rule
from sidestep.protocols.client_certificate import describe, names_of
from sidestep.protocols.tcp_synthesis import Endpoint
from sidestep.proxy.connection.captured import CommentedFindings
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.inspection_counts import InspectionCounts
from sidestep.proxy.connection.inspection_records import ConnectionRecords
from sidestep.proxy.connection.inspector_link import InspectorLink
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.mirror.ids_feeds import IdsFeeds

H2: Final = "h2"


def relay_for(
    protocol: str,
    port: LivePort,
    ledger: Ledger,
    client: TlsStream | None = None,
    *,
    global_rule: Rule | None = None,
    address: str = "",
    server_name: str = "",
    records: ConnectionRecords | None = None,
    teller: Callable[[], Teller] | None = None,
    captured: CaptureFacts | None = None,
    inspector: InspectorLink | None = None,
    endpoints: Endpoints | None = None,
) -> Relay:
    """Return the engine for `protocol` (an ALPN name).

    `client` is the stream of a client that came over TLS, `global_rule` a global intercept that takes every request.
    `address` and `server_name` (SNI) of the client are what inspection rules may be about; `records` is who makes
    records of what they find, if anybody reads them; `teller` makes those of sessions, also of later ones. `captured`
    is what captures are told of the connection. `inspector` judges whole requests, which it is told the `endpoints` of.
    """
    firewall = None if inspector is None or endpoints is None else firewall_of(port, inspector, endpoints)
    gate = gate_of(port, client, address, server_name, records, ledger.inspection, firewall)
    mirror = wiretap_mirror(
        ledger,
        port=port.steered.number,
        captured=captured if port.captures_requests else None,
        teller=teller,
        tells=port.has_wiretaps,
    )
    relay = _engine(protocol, port, ledger, client, gate, mirror)
    if gate is not None and captured is not None:
        gate.observer = CommentedFindings(gate.observer, relay.mirror)
    if records is not None:
        records.speaks(protocol)
    if global_rule is not None:
        relay.replace_app(global_rule)
    return relay


def gate_of(
    port: LivePort,
    client: TlsStream | None,
    address: str,
    server_name: str,
    records: ConnectionRecords | None = None,
    budget: Budget | None = None,
    firewall: Firewall | None = None,
) -> Gate | None:
    """Return what judges the requests of a connection, None on a port without inspection policies.

    `budget` is the memory that all connections may keep for verdicts.
    """
    inspection = port.inspection
    if inspection is None:
        return None
    if port.outward is not None:
        facts = port.outward.facts
    else:
        certificate = client.state.getpeercert() if client is not None else None
        facts = ConnectionFacts(
            ip_address(address) if address else None, server_name, names_of(certificate) if certificate else ()
        )
    snapshot = port.snapshot
    exempt: frozenset[tuple[bytes, bytes]] = frozenset()
    if snapshot.probes and address in snapshot.probe_sources:
        exempt = frozenset((method.encode(), target.encode()) for method, target in snapshot.probes)
    return Gate(
        inspection.connection(facts),
        InspectionCounts(port.counters) if records is None else records,
        port.new_id,
        sampling=None if records is None else records.sampling,
        exempt=exempt,
        budget=budget,
        firewall=firewall,
    )


def firewall_of(port: LivePort, inspector: InspectorLink, endpoints: Endpoints) -> Firewall | None:
    """Return what has whole requests judged, None on a port of which no policy has a web application firewall."""
    settings = None if port.inspection is None else port.inspection.waf
    if settings is None:
        return None
    client, server = (endpoints.client, endpoints.client_port), (endpoints.host, endpoints.port)
    counters = port.counters
    pass_by = partial(inspector.pass_by, counters) if port.outward is None else None  # each is judged by its own host
    return Firewall(settings, partial(inspector.ask, counters), client, server, pass_by=pass_by)


def _engine(
    protocol: str,
    port: LivePort,
    ledger: Ledger,
    client: TlsStream | None,
    gate: Gate | None,
    mirror: Mirror,
) -> Relay:
    engine = Http2Relay if protocol == H2 else Http1Relay
    rewriter = None
    if port.snapshot.forward_client_cert:
        rewriter = ClientCertificate(verified_certificate(client) if client is not None else None)
    return engine(
        port.steered,
        tls=client is not None,
        mirror=mirror,
        budget=ledger.budget,
        on_unreadable=port.on_unreadable,
        rewriter=rewriter,
        gate=gate,
    )


def mirror_whole(relay: Relay, port: LivePort, ledger: Ledger, captured: CaptureFacts | None = None) -> None:
    """Copy the whole connection to the port's global wiretaps and captures. The relay must not have received a byte
    yet. `captured` is what captures are told of the connection."""
    number = port.steered.number
    taps = port.snapshot.global_taps
    if taps:
        rules = ledger.gate.choose(number, tuple(Rule(uid, "", _never) for uid in taps))
        if rules:
            copy_whole(relay.mirror, rules, ledger, port=number)
    captures = port.snapshot.captures
    if captures and captured is not None:
        rules = ledger.gate.choose(number, tuple(Rule(uid, "", _never, capture=Snap.ALL) for uid in captures))
        if rules:
            capture_whole(relay.mirror, rules, ledger, captured, port=number)


def feed(relay: Relay, port: LivePort, ledger: Ledger, ids: IdsFeeds, endpoints: Endpoints) -> None:
    """Feed the connection to the pod's IDS, if a policy of the port has one. The relay must not have received a byte.

    A connection that is passed through has nothing that an IDS could read. One is not fed while there is no IDS (it is
    being started again), or while mirroring has taken its share of time; that is counted.
    """
    if not port.has_ids or isinstance(relay, WireRelay):
        return
    pipe = ids.current
    if pipe is None or ledger.gate.is_spent:
        port.counters["ids_unfed"] += 1
        return
    client, server = Endpoint(endpoints.client, endpoints.client_port), Endpoint(endpoints.host, endpoints.port)
    relay.mirror.observer = feed_ids(pipe, client, server, port.counters)


def global_rule(port: LivePort, client: str) -> Rule | None:
    """Return the global intercept that takes the connections of this client address, None if none does.

    Where a policy blocks, none does: its connections would be carried unparsed.
    """
    if port.inspection is not None and port.inspection.enforces:
        return None
    snapshot = port.snapshot
    if not snapshot.global_uid or client in snapshot.pass_sources:
        return None
    return Rule(snapshot.global_uid, snapshot.global_display, _never)


def _never(method: bytes, path: bytes, fields: object) -> bool:
    del method, path, fields
    return False


def verified_certificate(client: TlsStream) -> bytes | None:
    """Describe the client's verified certificate (see `client_certificate`); None when it sent none."""
    certificate = client.state.getpeercert()
    der = client.state.getpeercert(True)
    return describe(certificate, der) if certificate and der else None
