"""TLS connection to the handler, with half-close, which asyncio's TLS transport lacks.

An `ssl` object works between two memory BIOs over a `SocketChannel`. `read` decrypts everything it has fed before it
returns, so between reads the incoming BIO contains at most a partial record. This allows `write_eof` to send
close_notify while reading continues; OpenSSL's shutdown fails when it finds application data there.

A handler that closes TCP without close_notify counts as finished. Development servers do so routinely, and HTTP framing
tells the client about truncation.
"""

from __future__ import annotations

import asyncio
import ssl

from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError


class TlsChannel:
    """A `tunnel.channel.Channel` over TLS, client side, created by `connect`."""

    def __init__(self, channel: SocketChannel, context: ssl.SSLContext, server_name: str | None) -> None:
        self._channel = channel
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._sending = asyncio.Lock()
        self._said_goodbye = False

    @classmethod
    async def connect(cls, channel: SocketChannel, context: ssl.SSLContext, server_name: str | None) -> TlsChannel:
        """Perform the handshake over a connected channel. Raises ssl.SSLError or ChannelBrokenError; the channel stays
        open.
        """
        tls = cls(channel, context, server_name)
        while True:
            try:
                tls._tls.do_handshake()
            except ssl.SSLWantReadError:
                await tls._flush()
                data = await channel.read()
                if not data:
                    raise ChannelBrokenError("it closed the connection during the TLS handshake") from None
                tls._incoming.write(data)
            except ssl.SSLError:
                await tls._flush()  # sends the alert
                raise
            else:
                await tls._flush()
                return tls

    @property
    def alpn(self) -> str | None:
        """The protocol that the handler selected (RFC 7301); None when it selected none."""
        return self._tls.selected_alpn_protocol()

    async def read(self) -> bytes:
        """As Channel.read."""
        while True:
            plain, finished = self._decrypt()
            if self._outgoing.pending:
                await self._flush()
            if plain or finished:
                return plain
            data = await self._channel.read()
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    async def write(self, data: bytes) -> None:
        """As Channel.write."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._tls.write(view) :]
            except ssl.SSLError as error:
                raise ChannelBrokenError(describe(error)) from error
        await self._flush()

    async def write_eof(self) -> None:
        """As Channel.write_eof; sends close_notify."""
        if not self._said_goodbye:
            self._said_goodbye = True
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # it expects the peer's close_notify, which `read` receives later
            await self._flush()

    def hung_up(self) -> bool:
        """As Channel.hung_up."""
        return self._channel.hung_up()

    def has_input(self) -> bool:
        """Whether there is anything to read, including a TLS record without content."""
        return self._channel.has_input()

    def close(self) -> None:
        """As Channel.close."""
        self._channel.close()

    def abort(self) -> None:
        """As Channel.abort."""
        self._channel.abort()

    def _decrypt(self) -> tuple[bytes, bool]:
        """Return all available plain text, and whether the handler has finished."""
        parts: list[bytes] = []
        try:
            while data := self._tls.read(64 * 1024):
                parts.append(data)
        except ssl.SSLWantReadError:
            return b"".join(parts), False
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            if not parts:
                raise ChannelBrokenError(describe(error)) from error
            return b"".join(parts), False
        return b"".join(parts), not parts

    async def _flush(self) -> None:
        async with self._sending:
            while self._outgoing.pending:
                await self._channel.write(self._outgoing.read())


def describe(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in words: "certificate verify failed"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message}"
    return (error.reason or "TLS error").replace("_", " ").lower()
