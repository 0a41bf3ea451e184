"""Makes the TLS in which clear HTTP of the pod leaves: connections to one server, verified under the name of its Host.

    run            connect and shake hands; the first stream, or a TlsFailure that says why there is none
    connect_again  make another like it, when the server has closed the first one

The server is asked for the protocol that the client speaks, `http/1.1` or `h2`, and for no other. One that chooses
nothing is taken to speak HTTP/1, as clients do (RFC 7301 section 3.2, RFC 9113 section 3.3).

Invariants
  * No byte of the client leaves in clear while this is in charge, and none before the server has been verified.
  * A server is verified as the connection's policy says: by the system's authorities, or by those of its `trust`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import msgspec

from sidestep.engine.classification import Protocol
from sidestep.model.condition import ConditionType
from sidestep.model.errors import PeerError
from sidestep.proxy.connection.app_connection import dial_app
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.establishment import shake_again
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.setup_host import SetupHost
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import Stream, TlsStream
from sidestep.proxy.io.task import Cancel
from sidestep.proxy.tls.failures import TlsFailure
from sidestep.proxy.tls.handshake import UpstreamHandshake


class TlsOrigination:
    """The handshakes of one connection of the pod; `protocol` is what its client speaks."""

    def __init__(
        self, loop: Loop, protocol: Protocol, *, name: str, port: LivePort, endpoints: Endpoints, host: SetupHost
    ) -> None:
        self._loop = loop
        self._alpn = protocol
        self._name = name
        self._port = port
        self._endpoints = endpoints
        self._host = host
        self._chosen: str | None = None

    async def run(self) -> TlsStream | TlsFailure:
        """Connect and shake hands. Never raises."""
        try:
            sock = await dial_app(self._host, self._port, self._endpoints)
        except PeerError as error:
            return TlsFailure(ConditionType.UPSTREAM_TLS_FAILED, str(error), "it does not accept connections for TLS")
        handshake = self._handshake()
        made = await handshake.run(sock)
        if isinstance(made, TlsFailure):
            return made
        self._chosen = made.state.selected_alpn_protocol()
        if (self._chosen == "h2") is not (self._alpn == "h2"):
            made.close()
            return TlsFailure(ConditionType.ALPN_UNSUPPORTED, "", f"it does not speak {self._alpn}")
        made.before_close = partial(handshake.remember, made)
        return made

    def connect_again(self, sock: socket.socket, done: Callable[[Stream | None], None]) -> Cancel:
        """Make another TLS stream over a connected socket; as `TlsEstablishment.connect_again`."""
        return shake_again(self._loop, self._handshake(), sock, self._chosen, done)

    def _handshake(self) -> UpstreamHandshake:
        return UpstreamHandshake(
            self._loop,
            port=msgspec.structs.replace(self._port.snapshot, upstream_name=self._name),
            credentials=self._host.credentials,
            server_name=_sent(self._name),
            alpn=(self._alpn,),
            late_auth=False,
            on_late_auth=_nothing,
        )


def _sent(name: str) -> str | None:
    """The name as SNI; None for an address, which is none (RFC 6066 section 3)."""
    return None if ":" in name or name.replace(".", "").isdigit() else name


def _nothing() -> None:
    """Do nothing: no server can ask for a certificate later where none is offered."""
