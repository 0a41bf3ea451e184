"""Chooses the engine that relays a connection, and its policies: what it does with the unreadable, who rewrites heads.

Global wiretaps of a port get its connections whole, beside any other relay. Filtered wiretaps get requests, so on a
port that has one connections are parsed even where a global intercept takes them all; the handler of that intercept
then stands where the app would.
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
    """Return the engine for `protocol` (an ALPN name).

    `client` is the stream of a client that came over TLS, `global_rule` a global intercept that takes every request.
    """
    relay = _engine(protocol, port, ledger, client)
    if global_rule is not None:
        relay.replace_app(global_rule)
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
    """Copy the whole connection to the port's global wiretaps. The relay must not have received a byte yet."""
    taps = port.snapshot.global_taps
    if taps:
        number = port.steered.number
        rules = ledger.gate.choose(number, tuple(Rule(uid, "", _never) for uid in taps))
        if rules:
            copy_whole(relay.mirror, rules, ledger, port=number)


def global_rule(port: LivePort, client: str) -> Rule | None:
    """Return the global intercept that takes the connections of this client address, None if none does."""
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
