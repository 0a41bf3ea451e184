"""ClientHellos of Python's own TLS library, made in memory."""

from __future__ import annotations

import ssl
from collections.abc import Sequence


def hello_of_ssl(
    name: str | None = "app.test",
    alpn: Sequence[str] = (),
    *,
    ciphers: str = "",
    least: ssl.TLSVersion | None = None,
    most: ssl.TLSVersion | None = None,
) -> bytes:
    """The first flight of a client. `name` is the server's; `least` and `most` bound the version."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if ciphers:
        context.set_ciphers(ciphers)
    if least:
        context.minimum_version = least
    if most:
        context.maximum_version = most
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("the client waits for no answer")
