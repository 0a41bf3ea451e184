"""Byte streams over non-blocking sockets: plain and TLS, with one surface.

The surface

    read()               bytes; b"" at an orderly end; None when it would block
    write(data)          the number of bytes taken, 0 when it would block
    finish(notify=...)   half-closes: sends FIN, over TLS after close_notify; False when the socket had no room for it:
                         call again when it has
    close(), reset()     close the descriptor; the peer of `reset` sees a reset
    shrink(), grow()     read less, or more, at a time

`read` and `write` raise OSError (ssl.SSLError is one) when the stream is broken. A TLS stream that breaks leaves
nothing behind in OpenSSL that other streams could take for their own failure (`error_queue`).

TLS calls go to the `_ssl` object inside an SSLSocket: the wrapper's own checks cost as much as the system call, and
making a wrapper costs eight system calls (measured). A read takes at most one record (16 KiB). A record that is longer
than the read stays inside OpenSSL, where epoll does not see it: the caller reads on while a read comes back full.

A TLS half-close sends close_notify and goes on reading. `ssl` offers only the complete shutdown, which waits for the
peer's close_notify and fails for good when data comes instead (SSL_shutdown(3)). So `_close_notify` puts a socketpair
in place of the descriptor (dup2), runs SSL_shutdown, and forwards the close_notify that it wrote. After the peer's own
close_notify the complete shutdown reads nothing, and is used as it is.

An end of a TLS stream without close_notify is reported like an orderly end, and noted in `ragged`. The conductor then
ends the other side without close_notify as well, so that neither peer takes a truncated stream for a complete one.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final, NoReturn

from sidestep.proxy.io import error_queue

PLAIN_READ: Final = 65536
"""Bytes of a read of a plain stream at most."""
LEAST_READ: Final = 2048
"""Bytes of a read at least, when reads take long (`shrink`)."""
TLS_READ: Final = 16384
"""Bytes of a read of a TLS stream: one record (RFC 8446 section 5.1)."""
_RESET: Final = struct.pack("ii", 1, 0)
RENEGOTIATION_REFUSED: Final = "SSLV3_ALERT_HANDSHAKE_FAILURE"
"""OpenSSL's reason when a TLS 1.2 server ends a connection because we do not renegotiate (RFC 5246 section 7.4.1.1)."""


_spare_pairs: Final[list[tuple[int, int]]] = []
"""Socketpairs for `TlsStream._close_notify`, empty and ready to be used again."""


def _pair() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours.detach(), theirs.detach()


def _is_closed(_: object) -> NoReturn:
    raise OSError(errno.EBADF, "the stream is closed")


class PlainStream:
    """A TCP or unix stream socket in the clear."""

    __slots__ = ("_recv", "_send", "fd", "full", "ragged", "sock")

    tls = False

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.full = PLAIN_READ
        self.ragged = False
        self._recv = sock.recv
        self._send = sock.send

    def read(self) -> bytes | None:
        """At most `full` bytes; see the module."""
        try:
            return self._recv(self.full)
        except BlockingIOError:
            return None

    def write(self, data: bytes) -> int:
        """Send what fits; see the module."""
        try:
            return self._send(data)
        except BlockingIOError:
            return 0

    def shrink(self) -> None:
        """Read a quarter at a time, at least LEAST_READ bytes."""
        self.full = max(LEAST_READ, self.full // 4)

    def grow(self) -> None:
        """Read twice as much at a time, at most PLAIN_READ bytes."""
        self.full = min(PLAIN_READ, self.full * 2)

    def finish(self, *, notify: bool) -> bool:
        """Half-close; see the module."""
        del notify
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close the descriptor."""
        self.sock.close()

    def reset(self) -> None:
        """Close so that the peer sees a reset (SO_LINGER 0, socket(7))."""
        reset(self.sock)


class WatchedStream(PlainStream):
    """A TCP socket of which somebody is told before it is closed, as `TlsStream.before_close`."""

    __slots__ = ("_before_close",)

    def __init__(self, sock: socket.socket, before_close: Callable[[], None]) -> None:
        super().__init__(sock)
        self._before_close: Callable[[], None] | None = before_close

    def close(self) -> None:
        """As PlainStream.close."""
        self._tell()
        super().close()

    def reset(self) -> None:
        """As PlainStream.reset."""
        self._tell()
        super().reset()

    def _tell(self) -> None:
        call, self._before_close = self._before_close, None
        if call is not None:
            call()


class HandlerStream(PlainStream):
    """A unix socket on which a handler is reached. Unix sockets have no reset: `tell` is called instead."""

    __slots__ = ("_tell",)

    def __init__(self, sock: socket.socket, tell: Callable[[], None]) -> None:
        super().__init__(sock)
        self._tell = tell

    def reset(self) -> None:
        """As PlainStream.reset."""
        self._tell()
        super().reset()


class TlsStream:
    """A TLS connection over a TCP socket; construct, `handshake` until it returns 0, then read and write.

    `state` tells about the connection: version, session, certificate, ALPN; the methods of `ssl.SSLSocket`.
    """

    __slots__ = (
        "__weakref__",
        "_notify_left",
        "_over",
        "_read",
        "_write",
        "asked",
        "before_close",
        "broken",
        "early",
        "fd",
        "full",
        "on_late_auth",
        "peer_first",
        "ragged",
        "renegotiable",
        "sock",
        "state",
    )

    tls = True

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Take over a connected, non-blocking socket. Raises OSError or ValueError (a name that cannot be sent)."""
        self.sock = sock
        self.fd = sock.fileno()
        self.full = TLS_READ
        self.ragged = False
        # What SSLContext.wrap_socket does in the end (measured: together with `_spare_pairs` and `Loop._masks` 31 of
        # 108 system calls per relayed connection, and a fifth of its CPU).
        self.state: Any = context._wrap_socket(  # type: ignore[attr-defined] # noqa: SLF001 - see the module
            sock, server_side, server_name, owner=self, session=session
        )
        self.asked = False
        """The server has asked for a certificate; known where `credentials.watch_certificate_requests` watches."""
        self.on_late_auth: Callable[[], None] | None = None
        """Called once, when the server asks for a certificate after the handshake."""
        self.renegotiable = False
        """It does so by a renegotiation, which OpenSSL refuses."""
        self.early = b""
        """What the peer sent while its handshake was still being confirmed; to be read first (`take_early`)."""
        self.before_close: Callable[[], None] | None = None
        """Called once, while the connection can still be asked for its session."""
        self.peer_first: bool | None = None
        """Whether the peer has ended or broken the connection before we ended it; None while neither has."""
        self.broken = ""
        """OpenSSL's reason why it can be read no further: the peer's alert, if it sent one."""
        self._notify_left: bytes | None = None
        """What is still to be sent of our close_notify; None until it was made."""
        self._over = False
        """The peer has sent close_notify."""
        self._read = self.state.read
        self._write = self.state.write

    def handshake(self) -> int:
        """Go on with the handshake: 0 when done, else the epoll event to wait for. Raises ssl.SSLError, OSError."""
        try:
            self.state.do_handshake()
        except ssl.SSLWantReadError:
            return 1  # EPOLLIN
        except ssl.SSLWantWriteError:
            return 4  # EPOLLOUT
        except OSError:
            error_queue.take_first()
            raise
        return 0

    def read(self) -> bytes | None:
        """At most one record; see the module."""
        try:
            data: bytes | None = self._read(TLS_READ)
            if not data:
                self._over = True
                self._peer_ends()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            data = None
        except ssl.SSLZeroReturnError:
            self._over = True  # the peer's close_notify, after ours
            self._peer_ends()
            data = b""
        except OSError as error:
            self._peer_ends(error)
            # The end was met, but the alert that says so could not be sent: the first error is the reason.
            ragged = error_queue.take_first() == error_queue.UNEXPECTED_EOF or is_ragged_end(error)
            if self.asked or not (self.ragged or ragged):
                if isinstance(error, ssl.SSLError) and error.reason == RENEGOTIATION_REFUSED and self.renegotiable:
                    self._tell_late_auth()
                raise
            self.ragged = True
            data = b""
        return data

    def write(self, data: bytes) -> int:
        """Encrypt and send what fits. A blocked write must be repeated with data that begins the same."""
        taken = 0
        try:
            taken = self._write(data)
            if taken < len(data):
                view = memoryview(data)
                while taken < len(data):
                    taken += self._write(view[taken:])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            error_queue.take_first()
            self._peer_ends(error)
            raise
        return taken

    def _peer_ends(self, error: OSError | None = None) -> None:
        if self.peer_first is None:
            self.peer_first = True
        if isinstance(error, ssl.SSLError) and not self.broken:
            self.broken = error.reason or ""

    def certificate_requested(self) -> None:
        """A CertificateRequest has arrived, and OpenSSL is about to answer it.

        After the handshake OpenSSL would answer that there is no certificate, and an app may take that for the client's
        answer. So nothing is sent any more, and the read that met the request fails.
        """
        self.asked = True
        if self.on_late_auth is not None:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            self._tell_late_auth()

    def _tell_late_auth(self) -> None:
        call, self.on_late_auth = self.on_late_auth, None
        if call is not None:
            call()

    def shrink(self) -> None:
        """Do nothing: a record is decrypted whole, and reading less of it saves nothing."""

    def grow(self) -> None:
        """Do nothing, as `shrink`."""

    def take_early(self) -> bytes:
        """Return `early` and forget it."""
        early, self.early = self.early, b""
        return early

    def finish(self, *, notify: bool) -> bool:
        """Half-close: close_notify (unless the other side ended without one), then FIN; see the module."""
        if self.peer_first is None:
            self.peer_first = False
        try:
            if notify and not self._send_close_notify():
                return False
        except OSError:
            error_queue.take_first()
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        return True

    def _send_close_notify(self) -> bool:
        """Send close_notify; False when the socket has not taken all of it. Raises OSError."""
        if self._over and self._notify_left is None:
            try:
                self.state.shutdown()
            except ssl.SSLWantWriteError:
                return False
            return True
        if self._notify_left is None:
            self._notify_left = b""
            self._notify_left = self._close_notify()
        try:
            while self._notify_left:
                self._notify_left = self._notify_left[self.sock.send(self._notify_left) :]
        except BlockingIOError:
            return False
        return True

    def _close_notify(self) -> bytes:
        """The encrypted close_notify alert; nothing is read from the peer (see the module). Raises OSError."""
        ours, theirs = _spare_pairs.pop() if _spare_pairs else _pair()
        try:
            kept = os.dup(self.fd)
            try:
                os.dup2(theirs, self.fd, inheritable=False)
                try:
                    self.state.shutdown()
                except ssl.SSLWantReadError:
                    pass  # expected: the socketpair has nothing to read
                finally:
                    os.dup2(kept, self.fd, inheritable=False)
            finally:
                os.close(kept)
            alert = os.read(ours, PLAIN_READ)
        except BaseException:
            os.close(ours)
            os.close(theirs)
            raise
        _spare_pairs.append((ours, theirs))  # it is empty again (measured: 17 system calls less, each time)
        return alert

    def close(self) -> None:
        """Close the descriptor."""
        self._before_close()
        self.sock.close()

    def reset(self) -> None:
        """Close so that the peer sees a reset."""
        self._before_close()
        reset(self.sock)

    def _before_close(self) -> None:
        call, self.before_close = self.before_close, None
        if call is not None:
            call()
        # The owner may be part of a reference cycle that is collected much later; OpenSSL's memory is freed now.
        self.state = self.on_late_auth = None
        self._read = self._write = _is_closed


Stream = PlainStream | TlsStream


def is_ragged_end(error: OSError) -> bool:
    """Whether a TLS connection ended without close_notify; Python versions differ in how they say so."""
    if not isinstance(error, ssl.SSLError):
        return False
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


def reset(sock: socket.socket) -> None:
    """Close a socket so that the peer sees a reset (SO_LINGER with timeout 0, socket(7))."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass
    sock.close()
