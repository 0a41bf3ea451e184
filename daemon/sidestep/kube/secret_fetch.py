"""Reads one Secret from the API server with blocking calls. Runs in the one-shot reader, so the daemon never holds its
data.

`prepare` reads the daemon's token, which needs the daemon's privileges; `fetch` needs none. With a proxy the connection
is a tunnel through it (CONNECT, RFC 9110, 9.3.6): the proxy sees TLS with the API server, neither token nor Secret.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlencode, urlsplit

import h11
import msgspec

from sidestep.aio.client_tls import default_client_context
from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.kube.paths import escape
from sidestep.kube.proxies import Proxy
from sidestep.model.errors import ConfigurationError

TIMEOUT: Final = 5.0
"""Seconds for each wait. The one-shot reader's wall time bounds the total."""
MAX_ANSWER: Final = 4 * 1024 * 1024
"""Bytes of an answer. A Secret has at most 1 MiB before base64."""
_CHUNK: Final = 64 * 1024
_TLS_OVER_TLS: Final = "urllib3.util.ssltransport"


@dataclass(frozen=True, slots=True)
class SecretAccess:
    """An API server and a token for it."""

    host: str
    port: int
    base: str
    tls: ssl.SSLContext | None
    token: str = field(repr=False)
    proxy: Proxy | None = None

    def __str__(self) -> str:
        through = f" (through the proxy {self.proxy.url})" if self.proxy else ""
        return f"the API server {_authority(self.host, self.port)}{through}"


class _Stream(Protocol):
    """What sockets and TLS over TLS have in common."""

    def recv(self, size: int, /) -> bytes: ...

    def sendall(self, data: bytes, /) -> None: ...


class _Secret(msgspec.Struct):
    data: dict[str, str] | None = None


class _Secrets(msgspec.Struct):
    items: list[_Secret] | None = None


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""


def prepare(
    host: str, port: int, *, base: str, ca_file: str, token_file: str, proxy: Proxy | None = None
) -> SecretAccess:
    """Read the token and the CA, and load what a proxy needs. Raises ConfigurationError."""
    try:
        tls = default_client_context(cafile=ca_file) if ca_file else None
        token = Path(token_file).read_text().strip() if token_file else ""
    except (OSError, ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the service account's token cannot be read: {error}") from error
    if proxy is not None and proxy.url.startswith("https:"):
        importlib.import_module(_TLS_OVER_TLS)
    return SecretAccess(host, port, base, tls, token, proxy)


def fetch(access: SecretAccess, namespace: str, name: str) -> Mapping[str, bytes] | None:
    """Return the Secret's data; None when it does not exist. Raises ApiError, UnreachableClusterError,
    ConfigurationError.
    """
    collection = f"{access.base}/api/v1/namespaces/{escape(namespace)}/secrets"
    status, body = _exchange(access, f"{collection}/{escape(name)}")
    if status == 404:
        return None
    if status == 403:
        # A role may grant list and watch without get.
        listed, found = _exchange(access, f"{collection}?{urlencode({'fieldSelector': f'metadata.name={name}'})}")
        if listed == 200:
            return _data(found, _Secrets, namespace, name)
    if status != 200:
        try:
            said = msgspec.json.decode(body, type=_Status)
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = _Status()
        message = " ".join(said.message.split())[:500] or f"the API server answered with status {status}"
        raise ApiError(status, said.reason, message)
    return _data(body, _Secret, namespace, name)


def _data(body: bytes, kind: type[_Secret | _Secrets], namespace: str, name: str) -> Mapping[str, bytes] | None:
    try:
        read = msgspec.json.decode(body, type=kind)
        secret = read if isinstance(read, _Secret) else next(iter(read.items or ()), None)
        if secret is None:
            return None
        return {key: base64.b64decode(value, validate=True) for key, value in (secret.data or {}).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error) as error:
        # The text of the error may quote secret data, so it is not used.
        raise ConfigurationError(f"Secret {namespace}/{name} cannot be decoded") from error


def _exchange(access: SecretAccess, target: str) -> tuple[int, bytes]:
    headers = [("host", access.host), ("user-agent", "sidestep"), ("accept", "application/json")]
    if access.token:
        headers.append(("authorization", f"Bearer {access.token}"))
    connection = h11.Connection(h11.CLIENT)
    try:
        with _connected(access) as stream:
            stream.sendall(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
            stream.sendall(connection.send(h11.EndOfMessage()) or b"")
            return _answer(connection, stream)
    except (OSError, h11.ProtocolError) as error:
        raise UnreachableClusterError(f"{access} cannot be asked for a Secret: {error}") from error


@contextlib.contextmanager
def _connected(access: SecretAccess) -> Iterator[_Stream]:
    """Connect to the API server, through the proxy if there is one. Raises OSError, h11.ProtocolError,
    UnreachableClusterError.
    """
    with contextlib.ExitStack() as stack:
        if access.proxy is None:
            address, over_tls = (access.host, access.port), False
        else:
            url = urlsplit(access.proxy.url)
            address, over_tls = (url.hostname or "", url.port or 0), url.scheme == "https"
        sock = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT))
        if over_tls:
            context = access.tls or default_client_context()
            sock = stack.enter_context(context.wrap_socket(sock, server_hostname=address[0]))
        if access.proxy is not None:
            _open_tunnel(access, access.proxy, sock)
        if access.tls is None:
            yield sock
        elif over_tls:
            # `ssl` wraps plain sockets only.
            transport = importlib.import_module(_TLS_OVER_TLS).SSLTransport
            yield transport(sock, access.tls, server_hostname=access.host)
        else:
            yield stack.enter_context(access.tls.wrap_socket(sock, server_hostname=access.host))


def _open_tunnel(access: SecretAccess, proxy: Proxy, sock: socket.socket) -> None:
    """Ask the proxy for a connection to the API server. Raises as `_connected`."""
    target = _authority(access.host, access.port)
    headers = [("host", target), ("user-agent", "sidestep")]
    if proxy.authorization:
        headers.append(("proxy-authorization", proxy.authorization))
    connection = h11.Connection(h11.CLIENT)
    sock.sendall(connection.send(h11.Request(method="CONNECT", target=target, headers=headers)) or b"")
    sock.sendall(connection.send(h11.EndOfMessage()) or b"")
    while not isinstance(event := connection.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            connection.receive_data(sock.recv(_CHUNK))
    if not 200 <= event.status_code < 300:
        hint = "; it wants credentials in its URL" if event.status_code == 407 else ""
        said = f"refuses a connection to {target}: status {event.status_code}{hint}"
        raise UnreachableClusterError(f"the proxy {proxy.url} {said}")
    if connection.trailing_data[0]:
        raise UnreachableClusterError(f"the proxy {proxy.url} speaks before the API server was spoken to")


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _answer(connection: h11.Connection, stream: _Stream) -> tuple[int, bytes]:
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(stream.recv(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_ANSWER:
                raise UnreachableClusterError("the API server sent a Secret out of all bounds")
        elif isinstance(event, h11.EndOfMessage):
            return status, bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise UnreachableClusterError("the API server broke off")
