"""TLS towards the handler, with the half-close that asyncio's TLS transport lacks.

The `ssl` object works between two memory BIOs over a `SocketChannel`. `read` decrypts everything it fed before it
returns, so that the incoming BIO holds at most a partial record whenever somebody else touches the object: only
then may `write_eof` send close_notify (OpenSSL's shutdown would choke on application data it finds there) while reading
goes on.

A handler that closes TCP without close_notify is taken to have finished: development servers do it all the time, and
HTTP's own framing tells the client what was cut short.
"""

from __future__ import annotations

import asyncio
import ssl

from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError


class TlsChannel:
    """A `tunnel.channel.Channel` over TLS, client side. Make one with `connect`."""

    def __init__(self, channel: SocketChannel, context: ssl.SSLContext, server_name: str | None) -> None:
        self._channel = channel
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._sending = asyncio.Lock()
        self._said_goodbye = False

    @classmethod
    async def connect(cls, channel: SocketChannel, context: ssl.SSLContext, server_name: str | None) -> TlsChannel:
        """Shake hands over a connected channel. Raises ssl.SSLError or ChannelBrokenError; the channel stays open."""
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
                await tls._flush()  # the alert
                raise
            else:
                await tls._flush()
                return tls

    @property
    def alpn(self) -> str | None:
        """The protocol the handler chose (RFC 7301), None when it chose none."""
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
        """As Channel.write_eof: close_notify."""
        if not self._said_goodbye:
            self._said_goodbye = True
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # it wants the peer's close_notify, which `read` will meet
            await self._flush()

    def hung_up(self) -> bool:
        """As Channel.hung_up."""
        return self._channel.hung_up()

    def has_input(self) -> bool:
        """Whether there is anything to read, a TLS record without content included."""
        return self._channel.has_input()

    def close(self) -> None:
        """As Channel.close."""
        self._channel.close()

    def abort(self) -> None:
        """As Channel.abort."""
        self._channel.abort()

    def _decrypt(self) -> tuple[bytes, bool]:
        """Return all plain text there is, and whether the handler has finished."""
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
    """OpenSSL's reason in words: "certificate verify failed"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message}"
    return (error.reason or "TLS error").replace("_", " ").lower()
