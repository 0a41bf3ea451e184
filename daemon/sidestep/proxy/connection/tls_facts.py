"""What is told of a client's TLS connection: to sessions that are shown its requests, and in captures."""

from __future__ import annotations

from sidestep.protocols.client_certificate import listed_name
from sidestep.proxy.control.messages import MAX_TLS_TEXT, LoggedTls
from sidestep.proxy.io.stream import Stream, TlsStream


def tls_facts(client: Stream | None, server_name: str) -> LoggedTls | None:
    """Return the facts of a connection whose handshake is over; None where it is not TLS, or closed."""
    state = client.state if isinstance(client, TlsStream) else None
    cipher = state.cipher() if state is not None else None
    if state is None or cipher is None:
        return None
    certificate = state.getpeercert()
    return LoggedTls(
        version=state.version() or "",
        cipher=cipher[0],
        alpn=state.selected_alpn_protocol() or "",
        server_name=server_name[:MAX_TLS_TEXT],
        client=listed_name(certificate, "subject")[:MAX_TLS_TEXT] if certificate else "",
    )
