"""What an HTTP client of the proxy asks for: CONNECT, and requests with the whole URL (RFC 9112 section 3.2).

`CONNECT host:port` makes a tunnel. Of any other request the target is the URL of an http resource. It is sent on to
that host with its path as target, without the fields that are about this connection (RFC 9110 section 7.6), and with
`Connection: close`: each connection to a server is used for one request, so nothing of one host is ever sent to
another. The answer is passed on as it comes. Bodies are read, and written again, by h11.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import msgspec

from sidestep.laptop.outbound.conversation import MAX_HEAD, Conversation
from sidestep.laptop.outbound.socks5 import Place, host_of
from sidestep.model.errors import PeerError

_AUTHORITY: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([^\[\]:/?#@\s]{1,255})):([0-9]{1,5})")
_URL: Final = re.compile(
    rb"http://(?:\[([0-9A-Fa-f:.]{2,45})\]|([^\[\]:/?#@\s]{1,255}))(?::([0-9]{1,5}))?([/?][^#\s]*)?", re.IGNORECASE
)
_OURS: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"proxy-authorization", b"te", b"trailer", b"upgrade", b"host"}
)
"""Fields that are not sent on."""


class Asked(msgspec.Struct, frozen=True):
    """What a client asks for. `forward` is the request to be sent on; None: it wants a tunnel."""

    place: Place
    forward: h11.Request | None
    connection: h11.Connection
    """Of the client, which reads the rest of its request."""


class RefusalError(PeerError):
    """The client is answered with this status, and the connection ends."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


async def request(client: Conversation, *, user: str, password: str, is_ours: bool) -> Asked:
    """Return what the client asks for. Raises PeerError, RefusalError."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    head = await client.head()
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise RefusalError(400, "the request is not that of HTTP/1.1") from error
    if not isinstance(event, h11.Request):
        raise RefusalError(400, "the request is not that of HTTP/1.1")
    if not is_ours and not _authorized(event, user, password):
        raise RefusalError(407, "this proxy is another user's: give its user name and password")
    if event.method == b"CONNECT":
        found = _AUTHORITY.fullmatch(event.target)
        if found is None:
            raise RefusalError(400, "the target of CONNECT is not host:port")
        return Asked(_place(found[1] or found[2], found[3]), None, connection)
    found = _URL.fullmatch(event.target)
    if found is None:
        raise RefusalError(400, "this is a proxy: it takes CONNECT, and requests with an http URL")
    return Asked(_place(found[1] or found[2], found[3] or b"80"), _forwarded(event, found), connection)


def refusal(status: int, reason: str) -> bytes:
    """Return the answer that says why not."""
    text = {400: "Bad Request", 407: "Proxy Authentication Required", 502: "Bad Gateway"}[status]
    body = f"sidestep: {reason}\n".encode("utf-8", "replace")
    fields = 'Proxy-Authenticate: Basic realm="sidestep"\r\n' if status == 407 else ""
    head = (
        f"HTTP/1.1 {status} {text}\r\n{fields}Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _place(host: bytes, port: bytes) -> Place:
    number = int(port)
    if not 0 < number < 65536:
        raise RefusalError(400, "the port is none")
    try:
        return Place(host_of(host), number)
    except PeerError as error:
        raise RefusalError(400, str(error)) from error


def _authorized(request: h11.Request, user: str, password: str) -> bool:
    expected = b"Basic " + base64.b64encode(f"{user}:{password}".encode())
    given = [value for name, value in request.headers if name == b"proxy-authorization"]
    return len(given) == 1 and secrets.compare_digest(given[0], expected)


def _forwarded(event: h11.Request, found: re.Match[bytes]) -> h11.Request:
    named = {
        word.strip().lower() for name, value in event.headers if name == b"connection" for word in value.split(b",")
    }
    host = b"[" + found[1] + b"]" if found[1] else found[2]
    fields = [(b"Host", host + (b":" + found[3] if found[3] else b""))]
    dropped = _OURS | named
    if any(name == b"transfer-encoding" for name, _ in event.headers):
        dropped |= {b"content-length"}  # it does not count then, and must not be sent on (RFC 9112 section 6.3)
    fields += [(name, value) for name, value in event.headers.raw_items() if name.lower() not in dropped]
    fields.append((b"Connection", b"close"))
    try:
        path = found[4] or b"/"
        target = path if path.startswith(b"/") else b"/" + path
        return h11.Request(method=event.method, target=target, headers=fields)
    except h11.LocalProtocolError as error:
        raise RefusalError(400, "the request cannot be sent on") from error


async def send_on(
    client: Conversation, read: h11.Connection, request: h11.Request, write: Callable[[bytes], Awaitable[None]]
) -> None:
    """Send a request on, with its body. Raises PeerError when the client breaks off, or the rules."""
    written = h11.Connection(h11.CLIENT)
    try:
        await write(written.send(request) or b"")
        while True:
            event = read.next_event()
            if event is h11.NEED_DATA:
                read.receive_data(await client.read())
            elif isinstance(event, h11.Data | h11.EndOfMessage):
                await write(written.send(event) or b"")
                if isinstance(event, h11.EndOfMessage):
                    return
            else:
                raise PeerError("the client has gone")
    except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        raise PeerError("the body of a request is not that of HTTP/1.1") from error
