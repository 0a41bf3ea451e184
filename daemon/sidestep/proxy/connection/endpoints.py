"""The addresses of a connection, and what the daemon is told of it when a handler is to take part in it."""

from __future__ import annotations

from typing import Final

import msgspec

RAW: Final = "tcp"
"""The protocol of a connection whose bytes a handler gets as the client sends them."""


class Endpoints:
    """The client's address and the address that it dialled, as plain IPv4 or IPv6 (IPv4-mapped ones are unmapped).

    `names` are the sources (address, port) of live connections to the app for which the app sees the client's address
    (`client_naming`).
    """

    __slots__ = ("client", "client_port", "host", "names", "port")

    def __init__(self, client: str, client_port: int, host: str, port: int) -> None:
        self.client = client
        self.client_port = client_port
        self.host = host
        self.port = port
        self.names: list[tuple[str, int]] = []


class ConnectionInfo(msgspec.Struct, frozen=True):
    """What the daemon and the session are told of a connection to a handler.

    tls            the client came over TLS, and the handler gets what was inside
    server_name    the client's SNI, "" without one
    protocol       what the handler is spoken to in: an ALPN name, or RAW
    """

    endpoints: Endpoints
    tls: bool = False
    server_name: str = ""
    protocol: str = RAW
