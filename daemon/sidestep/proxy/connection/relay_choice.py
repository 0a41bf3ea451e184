"""Which engine relays a connection, and by which policies: what it does with the unreadable, who rewrites heads.

A port with global wiretaps has its connections copied whole, whatever else becomes of them. Filtered ones see requests,
and so does whoever wants to be told of heads: for their sake connections are read even where a global intercept takes
them all; its handler then stands where the app would.
"""

from __future__ import annotations

from typing import Final

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.whole_connection import copy_whole
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.engine.relay import Relay
from sidestep.engine.rewriting import ClientCertificate
from sidestep.policy.route import Rule
from sidestep.protocols.client_certificate import describe
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.io.stream import TlsStream

H2: Final = "h2"


def relay_for(
    protocol: str, port: LivePort, ledger: Ledger, client: TlsStream | None = None, *, global_rule: Rule | None = None
) -> Relay:
    """The engine for `protocol` (an ALPN name).

    `client` is the stream of a client that came over TLS, `global_rule` a global intercept that takes every request.
    """
    relay = _engine(protocol, port, ledger, client)
    if global_rule is not None:
        relay.put_in_place_of_app(global_rule)
    return relay


def _engine(protocol: str, port: LivePort, ledger: Ledger, client: TlsStream | None) -> Relay:
    engine = Http2Relay if protocol == H2 else Http1Relay
    rewriter = None
    if port.snapshot.forward_client_cert:
        rewriter = ClientCertificate(verified_certificate(client) if client is not None else None)
    return engine(
        port.steered,
        tls=client is not None,
        mirror=wiretap_mirror(ledger, port=port.steered.number),
        budget=ledger.budget,
        on_unreadable=port.on_unreadable,
        rewriter=rewriter,
    )


def mirror_whole(relay: Relay, port: LivePort, ledger: Ledger) -> None:
    """Have the connection copied as it is to the port's global wiretaps. No byte may have been given to it yet."""
    taps = port.snapshot.global_taps
    if taps:
        number = port.steered.number
        rules = ledger.gate.choose(number, tuple(Rule(uid, "", _never) for uid in taps))
        if rules:
            copy_whole(relay.mirror, rules, ledger, port=number)


def global_rule(port: LivePort, client: str) -> Rule | None:
    """The global intercept that takes the connections of this client address, if there is one."""
    snapshot = port.snapshot
    if not snapshot.global_uid or client in snapshot.pass_sources:
        return None
    return Rule(snapshot.global_uid, snapshot.global_display, _never)


def _never(method: bytes, path: bytes, fields: object) -> bool:
    del method, path, fields
    return False


def verified_certificate(client: TlsStream) -> bytes | None:
    """What the client's verified certificate says (see `client_certificate`); None when it showed none."""
    certificate = client.state.getpeercert()
    der = client.state.getpeercert(True)
    return describe(certificate, der) if certificate and der else None
