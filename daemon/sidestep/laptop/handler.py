"""Connecting to the handler: one dial per diverted connection, in the protocol that the client used.

TLS when the client used TLS, with the client's SNI and its application protocol as the only ALPN offer, unverified
unless a CA is given: the handler is the developer's own process, mostly with a self-made certificate. In clear with
`plaintext`, or when the client's connection was in clear. A dial is tried once: the answer decides at once whether the
request goes to the app instead.

`Handler.dial` is where translation to HTTP/1.1 belongs, for a handler that refuses "h2".
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from sidestep.laptop.tls_channel import TlsChannel, describe
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.tunnel.channel import Channel, SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError
from sidestep.tunnel.opening import StreamOpening

DIAL_TIMEOUT = 8.0
"""Seconds for TCP and TLS together; less than the daemon waits for the answer."""
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""OpenSSL's reasons for an answer that is no TLS at all."""


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """Where the handler listens and how to talk to it. `ca` is a PEM file that verifies it."""

    port: int
    address: str = "127.0.0.1"
    plaintext: bool = False
    ca: Path | None = None

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Handler:
    """Dials the handler of one session. Raises ConfigurationError when the CA file cannot be used."""

    def __init__(self, settings: HandlerSettings) -> None:
        self.settings = settings
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._trust = None if settings.ca is None else _read_trust(settings.ca)

    async def dial(self, opening: StreamOpening) -> Channel:
        """Connect for one diverted connection. Raises RefusedError in words for the developer."""
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                sock = await self._connect()
                channel = SocketChannel(sock)
                if self.settings.plaintext or not opening.tls:
                    return channel
                try:
                    return await self._shake_hands(channel, opening)
                except BaseException:
                    channel.abort()
                    raise
        except TimeoutError as error:
            raise RefusedError(f"the handler at {self.settings} did not answer within {DIAL_TIMEOUT:g} s") from error

    async def _connect(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.settings.address, self.settings.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise RefusedError(f"the handler's address {self.settings.address} cannot be resolved") from error
        reason = "no address"
        for family, kind, protocol, _name, address in found:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                await loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                reason = os.strerror(error.errno or 0).lower()
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise RefusedError(f"no handler answers at {self.settings}: {reason}")

    async def _shake_hands(self, channel: SocketChannel, opening: StreamOpening) -> TlsChannel:
        context = self._context(opening.protocol)
        name = opening.server_name or (self.settings.address if self._trust is not None else None)
        try:
            try:
                tls = await TlsChannel.connect(channel, context, _sendable(name))
            except ssl.SSLError as error:
                if error.reason in _NOT_TLS:
                    raise RefusedError(
                        f"the handler at {self.settings} does not speak TLS; --plaintext talks to it in clear"
                    ) from error
                raise RefusedError(f"TLS with the handler at {self.settings} failed: {describe(error)}") from error
        except ChannelBrokenError as error:
            raise RefusedError(f"TLS with the handler at {self.settings} failed: {error}") from error
        if opening.protocol == "h2" and tls.alpn != "h2":
            raise RefusedError(f"the handler at {self.settings} does not speak HTTP/2 (ALPN), and the client does")
        return tls

    def _context(self, protocol: str) -> ssl.SSLContext:
        """A context offers one ALPN list; there are as many contexts as protocols, three at most."""
        context = self._contexts.get(protocol)
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if self._trust is None:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            else:
                context.load_verify_locations(cadata=self._trust)
            if protocol != "tcp":
                context.set_alpn_protocols([protocol])
            self._contexts[protocol] = context
        return context


def _read_trust(path: Path) -> str:
    try:
        text = path.read_text()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    except UnicodeDecodeError as error:
        raise _unusable(path, "is no PEM text") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(path, "holds no CA certificate in PEM form") from error
    return text


def _unusable(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(reason, subject="--handler-ca", value=str(path))


def _sendable(name: str | None) -> str | None:
    """A name that `ssl` takes as SNI or, for verification, as an IP address; None for what it would refuse."""
    if not name:
        return None
    try:
        ip_address(name)
    except ValueError:
        labels = name.removesuffix(".").split(".")
        return name if all(0 < len(label) <= 63 for label in labels) and name.isascii() else None
    return name
