"""Connects to the handler: one dial per diverted connection, in the protocol of the client.

TLS is used when the client used TLS, with the client's SNI, and its application protocol as the ALPN offer. The
handler's certificate is not verified unless a CA is given, since most handlers are development processes with a
self-signed certificate. With `plaintext`, or when the client's connection was in clear text, the handler is reached in
clear text. A dial is attempted once, because a failure sends the request to the app instead.

For a client that speaks HTTP/2 the offer is HTTP/2 and HTTP/1.1, or in clear text a probe (`channels.preface_probe`). A
handler without HTTP/2 is reached with HTTP/1.1 (`translation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path

import msgspec
from msgspec.structs import replace

from sidestep.aio.named_file import read_named
from sidestep.aio.os_reason import os_reason
from sidestep.aio.time_limit import time_limit
from sidestep.laptop.channels.datagram_channel import DatagramChannel
from sidestep.laptop.channels.preface_probe import probe
from sidestep.laptop.channels.tls_channel import TlsChannel, describe
from sidestep.laptop.loopback_listener import set_binding
from sidestep.laptop.translation.channel import TranslatingChannel
from sidestep.laptop.translation.connection_pool import ConnectionPool, HandlerChannel
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.tunnel.access import AccessClient
from sidestep.tunnel.channel import Channel, SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError
from sidestep.tunnel.opening import StreamOpening

DIAL_TIMEOUT = 8.0
"""Seconds for TCP and TLS together; shorter than the daemon waits for the answer."""
_NAME = re.compile(
    r"(?=.{1,254}\Z)[0-9A-Za-z_]([0-9A-Za-z_-]{0,62}(?<!-))?(\.[0-9A-Za-z_]([0-9A-Za-z_-]{0,62}(?<!-))?)*\.?"
)
"""A host name. Dialling finds out whether it resolves."""
_NUMERIC = re.compile(r"[0-9.]+")
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""OpenSSL's error reasons for an answer that is not TLS."""
REMEMBERED = 10.0
"""Seconds for which a clear-text handler that did not accept HTTP/2 is not probed again."""
_OFFERS = {"h2": ["h2", "http/1.1"], "http/1.1": ["http/1.1"]}
"""ALPN offers (RFC 7301) by the client's protocol."""


class HandlerSettings(msgspec.Struct, frozen=True):
    """Address of the handler and how to reach it. `ca` is a PEM file for verifying its certificate."""

    port: int
    address: str = "127.0.0.1"
    plaintext: bool = False
    ca: Path | None = None

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Handler:
    """Dials the handler of one session. Raises ConfigurationError when the address or the CA file cannot be used."""

    def __init__(self, settings: HandlerSettings) -> None:
        if not _is_host(settings.address):
            raise ConfigurationError("is not a host name or address", subject="--address", value=settings.address[:100])
        self.settings = settings
        self.intercept = ""
        """Name of the intercept, for answers generated in place of the handler; the session sets it."""
        self.access: AccessClient | None = None
        """What uses the pods' world, in a session that may."""
        self._http1_until = 0.0
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._trust = None if settings.ca is None else _read_trust(settings.ca)

    async def dial(self, opening: StreamOpening) -> Channel:
        """Connect for one diverted connection. Raises RefusedError with a text for the developer."""
        if opening.protocol == "udp":
            return await DatagramChannel.connect(self.settings.address, self.settings.port)
        if opening.protocol != "h2":
            return await self._dial(opening)
        in_http1 = replace(opening, protocol="http/1.1")
        first: HandlerChannel | None = None
        if self._in_clear(opening):
            if asyncio.get_running_loop().time() >= self._http1_until:
                channel = await self._dial(opening)
                assert isinstance(channel, SocketChannel)  # noqa: S101 - for the type checker
                speaking = await probe(channel)
                if speaking is not None:
                    return speaking
                self._http1_until = asyncio.get_running_loop().time() + REMEMBERED
            first = await self._dial(in_http1)
        else:
            first = await self._dial(opening)
            if isinstance(first, TlsChannel) and first.alpn == "h2":
                return first
        connections = ConnectionPool(lambda: self._dial(in_http1), first)
        return TranslatingChannel(
            connections, intercept=self.intercept or opening.intercept, handler=str(self.settings)
        )

    async def absent(self) -> str:
        """Return that certainly nobody listens where the handler is to be, "" otherwise.

        It is told from whether the address can be bound: a connection might be the only one that the handler accepts.
        An address of another machine and a port that takes privileges cannot be, so nothing is told of them.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.settings.address, self.settings.port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _name, address in found:
                with socket.socket(family, kind, protocol) as sock:
                    set_binding(sock)  # on Linux a handler that is about to bind it, as most do, still can
                    sock.bind(address)
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
                _bind_wildcards(self.settings.port)
        except (OSError, UnicodeError):
            return ""
        return f"nothing listens on {self.settings}"

    async def hear(self) -> Channel:
        """Return what takes the session's records of inspection, as lines. Raises RefusedError."""
        raise RefusedError("this session takes no records")

    def _in_clear(self, opening: StreamOpening) -> bool:
        return self.settings.plaintext or not opening.tls

    async def _dial(self, opening: StreamOpening) -> HandlerChannel:
        try:
            async with time_limit(DIAL_TIMEOUT):
                channel = SocketChannel(await self._connect())
                if self._in_clear(opening):
                    return channel
                try:
                    return await self._shake_hands(channel, opening)
                except BaseException:
                    channel.abort()
                    raise
        except TimeoutError as error:
            raise RefusedError(f"the handler at {self.settings} did not answer within {DIAL_TIMEOUT:g} s") from error
        except RefusedError:
            self._http1_until = 0.0  # another handler may be started in its place
            raise

    async def _connect(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.settings.address, self.settings.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise RefusedError(f"the handler's address {self.settings.address} cannot be resolved") from error
        reason = "no address"
        for family, kind, protocol, _name, address in found:
            sock = socket.socket(family, kind, protocol)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                reason = os_reason(error)
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
                        f"the handler at {self.settings} does not speak TLS; --plaintext reaches it in clear text"
                    ) from error
                raise RefusedError(f"TLS with the handler at {self.settings} failed: {describe(error)}") from error
        except ChannelBrokenError as error:
            raise RefusedError(f"TLS with the handler at {self.settings} failed: {error}") from error
        return tls

    def _context(self, protocol: str) -> ssl.SSLContext:
        """Return the TLS context for a protocol. A context has one ALPN list, so there are at most three."""
        context = self._contexts.get(protocol)
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if self._trust is None:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            else:
                context.load_verify_locations(cadata=self._trust)
            if protocol != "tcp":
                context.set_alpn_protocols(_OFFERS[protocol])
            self._contexts[protocol] = context
        return context


class NoHandler(Handler):
    """Placeholder for the handler of a session that receives events only."""

    def __init__(self) -> None:
        super().__init__(HandlerSettings(port=0))

    async def absent(self) -> str:
        """As Handler.absent: nobody has to answer."""
        return ""

    async def dial(self, opening: StreamOpening) -> Channel:
        """Raise RefusedError."""
        del opening
        raise RefusedError("this session takes no connections")


def _bind_wildcards(port: int) -> None:
    """Raises OSError when somebody listens on all addresses of this machine.

    For Windows, which binds one address beside a listener on the wildcard address, exclusively even ("Using
    SO_REUSEADDR and SO_EXCLUSIVEADDRUSE", learn.microsoft.com), and the wildcard address beside a listener on one.
    """
    for family, wildcard in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with contextlib.ExitStack() as stack:
            try:
                sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            except OSError:
                continue  # a machine without IPv6
            set_binding(sock)
            try:
                sock.bind((wildcard, port))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # else IPv6 is switched off
                    raise


def _is_host(text: str) -> bool:
    """Whether the text is a valid host: a host name, an IPv4 or an IPv6 address (with a zone)."""
    if ":" in text or _NUMERIC.fullmatch(text):
        try:
            ip_address(text)
        except ValueError:
            return False
        return text.isascii() and text.isprintable()
    return _NAME.fullmatch(text) is not None


def _read_trust(path: Path) -> str:
    try:
        text = read_named(path, subject="--handler-ca").decode()
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
    """Return a name that `ssl` accepts as SNI or, for verification, as an IP address; None when it would reject it."""
    if not name:
        return None
    try:
        ip_address(name)
    except ValueError:
        labels = name.removesuffix(".").split(".")
        return name if all(0 < len(label) <= 63 for label in labels) and name.isascii() else None
    return name
