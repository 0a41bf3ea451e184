"""What is told of a client's TLS connection: to sessions that are shown its requests, and in captures.

The fingerprints (`protocols.ja4`) are of the ClientHello, which is kept only where a session was shown requests of the
port when the connection began, and as long as `kept_hellos` has room: a connection that is older than all sessions has
none, nor has one with a very large ClientHello, or one that was silent while thousands of others came.
"""

from __future__ import annotations

from sidestep.protocols import ja4
from sidestep.protocols.client_certificate import listed_name
from sidestep.protocols.client_hello import ClientHello, parse
from sidestep.proxy.control.messages import MAX_TLS_TEXT, LoggedTls
from sidestep.proxy.io.stream import Stream, TlsStream


def tls_facts(client: Stream | None, server_name: str, hello: bytes = b"") -> LoggedTls | None:
    """Return the facts of a connection whose handshake is over; None where it is not TLS, or closed.

    `hello`: the records that its ClientHello came in; without them there are no fingerprints.
    """
    state = client.state if isinstance(client, TlsStream) else None
    cipher = state.cipher() if state is not None else None
    if state is None or cipher is None:
        return None
    try:
        certificate = state.getpeercert()
    except ValueError:  # it has been shut down or has failed, or a name in the certificate is not UTF-8
        certificate = None
    offered = parse(hello) if hello else None
    known = ja4.fingerprints(offered) if isinstance(offered, ClientHello) else None
    return LoggedTls(
        version=state.version() or "",
        cipher=cipher[0],
        alpn=state.selected_alpn_protocol() or "",
        server_name=server_name[:MAX_TLS_TEXT],
        client=listed_name(certificate, "subject")[:MAX_TLS_TEXT] if certificate else "",
        ja3=known.ja3 if known is not None else "",
        ja4=known.ja4 if known is not None else "",
    )
