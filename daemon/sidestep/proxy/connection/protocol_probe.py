"""Finding out what an app speaks, when neither annotation nor appProtocol says it (design section 5).

One probe is one connection to the app, made when a first connection arrives for a port whose protocol is to be probed:

    client began with TLS   a real handshake offering h2 and http/1.1, verifying nothing
    client began in clear   the HTTP/2 preface and an empty SETTINGS frame (RFC 9113 section 3.4)

    TLS handshake  succeeds, or fails by an alert, or asks for a certificate    -> TLS; the ALPN choice tells HTTP/2
                   answered by bytes that are no TLS record                     -> not TLS
    clear preface  answered by a SETTINGS frame                                 -> not TLS, HTTP/2
                   answered by a TLS alert record                               -> TLS
                   answered by anything else, or closed without a word          -> not TLS, no HTTP/2
    refused, timed out, reset, closed in mid-handshake                          -> unknown

An app that answered is left with a FIN and read to its end: a reset for its session tickets would be in its log.

A definite answer is kept for the life of this object (a container restart or a contradiction makes a new one); unknown
is never kept, the next connection probes again. Nothing waits for a probe: each connection is judged by its own bytes,
the answer is for `list`, `status`, refusals and handlers.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sidestep.proxy.connection.dial import Dial
from sidestep.proxy.io.loop import READ, Loop, Timer
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.tls.credentials import watch_certificate_requests
from sidestep.proxy.tls.handshake import Farewell

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GOODBYE: Final = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8)
"""GOAWAY, NO_ERROR: the polite end of the probe's connection."""
NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
"""OpenSSL's reasons for an answer that is no TLS record."""
UNTOLD: Final = frozenset({"UNEXPECTED_EOF_WHILE_READING"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe learnt; None: unknown. `certificate` is the app's own, DER, empty when none was seen."""

    tls: bool | None
    http2: bool | None = None
    alpn: str = ""
    asks_certificate: bool = False
    certificate: bytes = b""

    @property
    def definite(self) -> bool:
        """Whether it may be kept."""
        return self.tls is not None


UNKNOWN: Final = Finding(None)


class Probe:
    """One probe. Calls `done(finding)` once, within `timeout` seconds, unless cancelled."""

    def __init__(
        self,
        loop: Loop,
        host: str,
        port: int,
        *,
        tls: bool,
        server_name: str | None,
        timeout: float,
        done: Callable[[Finding], None],
    ) -> None:
        self._loop = loop
        self._tls = tls
        self._server_name = server_name
        self._done: Callable[[Finding], None] | None = done
        self._sock: socket.socket | None = None
        self._stream: TlsStream | None = None
        self._answer = b""
        self._timer: Timer = loop.later(timeout, self._give_up)
        self._dial: Dial | None = Dial(loop, host, port, self._connected)

    def _give_up(self) -> None:
        self._finish(UNKNOWN)

    def cancel(self) -> None:
        """Close the connection; nothing is reported."""
        self._done = None
        self._finish(UNKNOWN)

    def abandon(self) -> None:
        """A bug was met here."""
        self._finish(UNKNOWN)

    def _connected(self, sock: socket.socket | None, error: OSError | None) -> None:
        del error
        self._dial = None
        if sock is None:
            self._finish(UNKNOWN)
            return
        self._sock = sock
        try:
            if self._tls:
                self._begin_handshake(sock)
            else:
                sock.send(PREFACE)
                self._loop.add(sock.fileno(), self._clear_ready, READ)
        except (OSError, ValueError):
            self._finish(UNKNOWN)

    # --- TLS --------------------------------------------------------------------------------------------------------

    def _begin_handshake(self, sock: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        watch_certificate_requests(context, TlsStream.certificate_requested)
        self._stream = stream = TlsStream(sock, context, server_side=False, server_name=self._server_name)
        self._sock = stream.sock
        self._loop.add(stream.fd, self._tls_ready, READ)
        self._tls_ready(0)

    def _tls_ready(self, mask: int) -> None:
        del mask
        stream = self._stream
        if stream is None:
            return
        try:
            wants = stream.handshake()
        except ssl.SSLError as error:
            self._finish(self._judge_failure(error))
            return
        except OSError:
            self._finish(UNKNOWN)
            return
        if wants:
            self._loop.modify(stream.fd, wants)
        else:
            self._finish(self._succeeded(stream))

    def _succeeded(self, stream: TlsStream) -> Finding:
        chosen = stream.state.selected_alpn_protocol() or ""
        certificate = stream.state.getpeercert(True) or b""
        asked = stream.asked
        stream.finish(notify=True)
        return Finding(True, http2=chosen == "h2", alpn=chosen, asks_certificate=asked, certificate=certificate)

    def _judge_failure(self, error: ssl.SSLError) -> Finding:
        reason = error.reason or ""
        if not reason or reason in UNTOLD:
            return UNKNOWN  # the app closed without an alert
        if reason in NOT_TLS:
            return Finding(False)
        asked = self._stream is not None and self._stream.asked
        return Finding(True, asks_certificate=asked)

    # --- clear text -------------------------------------------------------------------------------------------------

    def _clear_ready(self, mask: int) -> None:
        del mask
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(64)
        except BlockingIOError:
            return
        except OSError:
            self._finish(UNKNOWN)
            return
        self._answer += data
        if self._answer[:1] in (b"\x15", b"\x16"):
            self._finish(Finding(True))
        elif self._answer[3:4] == b"\x04" and self._answer[:1] == b"\x00":
            try:
                sock.send(GOODBYE)
            except OSError:
                pass
            self._finish(Finding(False, http2=True))
        elif not data or len(self._answer) >= 4:
            self._finish(Finding(False, http2=False))

    def _finish(self, finding: Finding) -> None:
        self._timer.cancel()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        sock, self._sock, self._stream = self._sock, None, None
        if sock is not None and finding.definite:
            Farewell(self._loop, sock)
        elif sock is not None:
            self._loop.remove(sock.fileno())
            sock.close()
        done, self._done = self._done, None
        if done is not None:
            done(finding)
