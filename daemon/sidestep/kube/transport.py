"""Connections to an API server: the REST client of `kubernetes.aio`, with our bounds, and its errors in our words.

The library supplies TLS, the pool of connections, proxies and HTTP (with aiohttp). Its own `request` is not used: it
encodes bodies from objects, follows redirects, and takes credentials from ~/.netrc.

TCP keepalive detects an unreachable machine within half a minute, also on a watch that is silent for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp
from yarl import URL

from sidestep.aio.os_reason import os_reason
from sidestep.kube import client_library
from sidestep.kube.access import ClusterAccess
from sidestep.kube.errors import UnreachableClusterError
from sidestep.kube.proxies import proxy_for

client_library.narrow()

from kubernetes.aio.client.configuration import Configuration  # noqa: E402 - only after its outer packages are set up
from kubernetes.aio.client.rest import RESTClientObject  # noqa: E402

CONNECT_TIMEOUT = 10.0
"""Seconds for TCP, the proxy's CONNECT and TLS."""
READ_SIZE = 64 * 1024
MAX_FIELD, MAX_FIELDS = 8190, 100
"""Bytes of a line, and lines, of a response head; of the proxy's answer too."""
IDLE = 60.0
"""Seconds for which an idle connection is kept."""
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
"""Seconds of silence before the first probe (the second name is macOS's), seconds between probes, their number."""
MAX_IDLE = 4
"""Idle connections that are kept. Requests are mostly made one at a time."""


class Transport(RESTClientObject):
    """Requests to one API server. Creating one raises ConfigurationError when a proxy's setting is invalid."""

    def __init__(self, access: ClusterAccess) -> None:
        proxy = proxy_for(access)
        settings = Configuration(
            host=str(access),
            ssl_ca_cert=access.ca_file or None,
            tls_server_name=access.server_name or None,
            proxy=proxy.url if proxy else None,
            proxy_headers={"proxy-authorization": proxy.authorization} if proxy and proxy.authorization else None,
            client_session_kwargs={
                "trust_env": False,  # neither ~/.netrc nor Python's reading of NO_PROXY
                "auto_decompress": False,  # a small answer stays small
                "skip_auto_headers": ("accept-encoding", "user-agent", "content-type"),
                "read_bufsize": READ_SIZE,
                "max_line_size": MAX_FIELD,
                "max_field_size": MAX_FIELD,
                "max_headers": MAX_FIELDS,
                "trace_configs": [_noting_reuse()],
            },
        )
        super().__init__(settings)
        self.access = access
        self.ssl_context = access.tls or self.ssl_context
        self.shown = f"{access} (through the proxy {proxy.url})" if proxy else str(access)
        self._root = f"{'https' if access.tls else 'http'}://{_bracketed(access.host)}:{access.port}{access.base}"

    async def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"", *, upgrade: bool = False
    ) -> aiohttp.ClientResponse:
        """Send a request and return its answer, of which the head has arrived. The caller closes it.

        The server may close an idle connection while a request is on its way there. Therefore a request whose
        connection had been used before and closes without an answer is sent again, but for a POST (RFC 9112, 9.3.1).
        If the server did carry it out, a DELETE finds nothing the second time, and a PATCH is a merge patch, which
        changes nothing, or names a resourceVersion, which is outdated: a Conflict. A request on a new connection is
        never repeated. Raises what `translated` translates.
        """
        for _ in range(MAX_IDLE):
            attempt = _Attempt()
            try:
                return await self._send(method, target, headers, body, attempt, upgrade=upgrade)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not attempt.reused or method == "POST":
                    raise
        return await self._send(method, target, headers, body, _Attempt(), upgrade=upgrade)

    async def _send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        attempt: _Attempt,
        *,
        upgrade: bool,
    ) -> aiohttp.ClientResponse:
        if self.pool_manager is None:
            self.pool_manager = self._create_pool_manager()
        fields = {"user-agent": "sidestep", "accept-encoding": "identity", **headers}
        authorization = self.access.authorization()
        if authorization:
            fields["authorization"] = authorization
        if self.proxy_headers and self.access.tls is None:
            fields |= self.proxy_headers  # aiohttp sends these with CONNECT only
        return await self.pool_manager.request(
            method,
            URL(self._root + target, encoded=True),
            headers=fields,
            data=body or None,
            allow_redirects=False,
            server_hostname=self.access.server_name or None,
            proxy=self.proxy,
            proxy_headers=self.proxy_headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_connect=None),
            read_until_eof=not upgrade,
            trace_request_ctx=attempt,
        )

    def upgraded(self, answer: aiohttp.ClientResponse) -> UpgradedStream:
        """Take over the connection of a 101. Raises what `translated` translates."""
        return UpgradedStream(answer)

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        self.configuration.client_session_kwargs["cookie_jar"] = aiohttp.DummyCookieJar()  # needs the loop
        session: aiohttp.ClientSession = super()._create_pool_manager()
        session._retry_connection = False  # noqa: SLF001 - aiohttp would repeat a DELETE on a new connection too
        return session

    def _create_connector(self) -> aiohttp.TCPConnector:
        return _Connector(ssl=self.ssl_context, limit=0, keepalive_timeout=IDLE, socket_factory=_keepalive_socket)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Raise UnreachableClusterError, one line, instead of the errors of the transport.

        It is raised without a cause: errors of aiohttp hold the head of the request, with the token or the credentials
        of the proxy.
        """
        try:
            yield
        except TimeoutError:
            raise UnreachableClusterError(f"the API server {self.shown} does not answer") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnreachableClusterError(self._explained(error)) from None

    def _peer(self, error: aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError) -> str:
        """Name the end at which TLS failed: an https:// proxy, or the API server behind it."""
        if self.proxy and (error.host, error.port) == (URL(self.proxy).host, URL(self.proxy).port):
            return f"the proxy {self.proxy}"
        return f"the API server {self.shown}"

    def _explained(self, error: Exception) -> str:
        match error:
            case aiohttp.ClientHttpProxyError():
                hint = "; it wants credentials in its URL" if error.status == 407 else ""
                return f"the proxy {self.proxy} refuses a connection to {self.access}: status {error.status}{hint}"
            case aiohttp.ClientProxyConnectionError():
                return f"the proxy {self.proxy} cannot be reached: {_reason(error.os_error)}"
            case aiohttp.ClientConnectorCertificateError():
                return f"TLS with {self._peer(error)} failed: {_reason(error.certificate_error)}"
            case aiohttp.ClientConnectorSSLError():
                return f"TLS with {self._peer(error)} failed: {_reason(error.os_error)}"
            case aiohttp.ClientConnectorError():
                return f"the API server {self.shown} cannot be reached: {_reason(error.os_error)}"
            case aiohttp.ClientResponseError():
                return f"the API server {self.shown} broke off: its answer is no HTTP"
            case aiohttp.ServerDisconnectedError():
                return f"the API server {self.shown} broke off: it closed the connection"
            case aiohttp.ClientPayloadError():
                return f"the API server {self.shown} broke off: its answer is not whole"
            case _:
                return f"the API server {self.shown} broke off: {_reason(error)}"


class _Attempt:
    """One sending of a request."""

    def __init__(self) -> None:
        self.reused = False
        """Whether its connection has served a request before."""


def _noting_reuse() -> aiohttp.TraceConfig:
    """Return what makes aiohttp set `reused` of an attempt."""

    async def noted(_session: aiohttp.ClientSession, context: Any, _params: Any) -> None:
        context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(noted)
    return config


class _Connector(aiohttp.TCPConnector):
    """Bounds idle connections, which aiohttp does only together with those in use, and watches are in use for ever."""

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        idle = sum(each.is_connected() for pool in self._conns.values() for each, _ in pool)
        super()._release(key, protocol, should_close=should_close or idle >= MAX_IDLE)


class UpgradedStream:
    """The streams of a connection after a 101."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        connection = answer.connection
        if connection is None or connection.transport is None or connection.protocol is None:
            raise aiohttp.ServerDisconnectedError
        loop = asyncio.get_running_loop()
        self._answer, self._transport = answer, connection.transport
        self.reader = asyncio.StreamReader(limit=READ_SIZE, loop=loop)
        protocol = _StreamProtocol(self.reader, connection.protocol)
        # What has arrived after the head passes to the first parser that is set.
        connection.protocol.set_parser(_Tail(self.reader), None)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self.writer = asyncio.StreamWriter(self._transport, protocol, self.reader, loop)

    def close(self) -> None:
        """Close; what has been written is still sent."""
        self._answer.close()


class _StreamProtocol(asyncio.StreamReaderProtocol):
    """Feeds the streams, and tells aiohttp, which waits for the end of each connection, of this end."""

    def __init__(self, reader: asyncio.StreamReader, replaced: asyncio.Protocol) -> None:
        super().__init__(reader)
        self._replaced = replaced

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._replaced.connection_lost(exc)


class _Tail:
    """A parser as aiohttp calls it, which leaves the bytes to a stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._reader.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        """The streams are told by their own protocol."""


def _reason(error: Any) -> str:
    """Return the reason of a failed connection in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error)
    # A failure of several addresses has no number, and a text in which each is named.
    found = os_reason(error) if isinstance(error, OSError) and (error.errno or 0) > 0 else str(error)
    return " ".join(found.split())[:200] or "the connection was closed"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """Create a socket for an address, as getaddrinfo returns it."""
    sock = socket.socket(*address[:3])
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock
