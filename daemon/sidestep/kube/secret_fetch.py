"""Reads one Secret from the API server with blocking calls. Runs in the one-shot reader, so the daemon never holds its
data.

`prepare` reads the daemon's token, which needs the daemon's privileges; `fetch` needs none.
"""

from __future__ import annotations

import base64
import binascii
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import h11
import msgspec

from sidestep.aio.client_tls import default_client_context
from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.kube.paths import escape
from sidestep.model.errors import ConfigurationError

TIMEOUT: Final = 5.0
"""Seconds for each wait. The one-shot reader's wall time bounds the total."""
MAX_ANSWER: Final = 4 * 1024 * 1024
"""Bytes of an answer. A Secret has at most 1 MiB before base64."""
_CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SecretAccess:
    """An API server and a token for it."""

    host: str
    port: int
    base: str
    tls: ssl.SSLContext | None
    token: str = field(repr=False)


class _Secret(msgspec.Struct):
    data: dict[str, str] | None = None


class _Secrets(msgspec.Struct):
    items: list[_Secret] | None = None


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""


def prepare(host: str, port: int, *, base: str, ca_file: str, token_file: str) -> SecretAccess:
    """Read the token and the CA. Raises ConfigurationError."""
    try:
        tls = default_client_context(cafile=ca_file) if ca_file else None
        token = Path(token_file).read_text().strip() if token_file else ""
    except (OSError, ssl.SSLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the service account's token cannot be read: {error}") from error
    return SecretAccess(host, port, base, tls, token)


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
    shown = f"the API server {access.host}:{access.port}"
    headers = [("host", access.host), ("user-agent", "sidestep"), ("accept", "application/json")]
    if access.token:
        headers.append(("authorization", f"Bearer {access.token}"))
    connection = h11.Connection(h11.CLIENT)
    try:
        with socket.create_connection((access.host, access.port), timeout=TIMEOUT) as plain:
            sock = plain if access.tls is None else access.tls.wrap_socket(plain, server_hostname=access.host)
            with sock:
                sock.sendall(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
                sock.sendall(connection.send(h11.EndOfMessage()) or b"")
                return _answer(connection, sock)
    except (OSError, h11.ProtocolError) as error:
        raise UnreachableClusterError(f"{shown} cannot be asked for a Secret: {error}") from error


def _answer(connection: h11.Connection, sock: socket.socket) -> tuple[int, bytes]:
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(sock.recv(_CHUNK))
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
