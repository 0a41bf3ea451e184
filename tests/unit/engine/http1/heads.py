"""Requests and answers that the tests of HTTP/1 share. `B` is for the handler of `shell.rule`, `A` for the app."""

from __future__ import annotations

A = b"GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n"
B = b"GET /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\n\r\n"
OK_A = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
OK_B = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"


def upgrade(request: bytes, offer: bytes = b"websocket") -> bytes:
    """The request, with an offer of these protocols."""
    options = b"Upgrade, HTTP2-Settings" if b"h2c" in offer.lower() else b"Upgrade"
    settings = b"HTTP2-Settings: AAMAAABk\r\n" if b"h2c" in offer.lower() else b""
    return request[:-2] + b"Connection: %b\r\nUpgrade: %b\r\n%b\r\n" % (options, offer, settings)


def connect(request: bytes) -> bytes:
    """The request, as a CONNECT."""
    return request.replace(b"GET /a", b"CONNECT db.test:5432").replace(b"GET /b", b"CONNECT db.test:5432")
