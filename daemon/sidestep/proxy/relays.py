"""Which engine relays a connection: by protocol, and by whether its port tells the app who the client is."""

from __future__ import annotations

from typing import Final

from sidestep.engine.http1 import Http1Relay
from sidestep.engine.http1_forwarding import ForwardingHttp1Relay
from sidestep.engine.http2 import Http2Relay
from sidestep.engine.http2_forwarding import ForwardingHttp2Relay
from sidestep.engine.relay import Relay
from sidestep.protocols.client_certificate import describe
from sidestep.proxy.ports import LivePort
from sidestep.proxy.stream import TlsStream

H2: Final = "h2"


def relay_for(protocol: str, port: LivePort, client: TlsStream | None = None) -> Relay:
    """The engine for `protocol` (an ALPN name). `client`: the stream of a client that came over TLS."""
    tls = client is not None
    if port.snapshot.forward_client_cert:
        value = proved_by(client) if client is not None else None
        if protocol == H2:
            return ForwardingHttp2Relay(port.steered, tls=tls, value=value)
        return ForwardingHttp1Relay(port.steered, tls=tls, value=value)
    if protocol == H2:
        return Http2Relay(port.steered, tls=tls)
    return Http1Relay(port.steered, tls=tls)


def proved_by(client: TlsStream) -> bytes | None:
    """What the client's verified certificate says (see `client_certificate`); None when it showed none."""
    certificate = client.sock.getpeercert()
    der = client.sock.getpeercert(binary_form=True)
    return describe(certificate, der) if certificate and der else None
