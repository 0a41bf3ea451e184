"""Finds out what an app speaks, when neither an annotation nor appProtocol says it (docs/design.md, "TLS").

One probe is one connection to the app, made when a first connection arrives for a port whose protocol is to be probed:

    client began with TLS   a real handshake offering h2 and http/1.1, verifying nothing
    client began in clear   the HTTP/2 preface and an empty SETTINGS frame (RFC 9113 section 3.4)

    TLS handshake  succeeds, or fails by an alert, or asks for a certificate    -> TLS; the ALPN choice tells HTTP/2
                   answered by bytes that are no TLS record                     -> not TLS
    clear preface  answered by a SETTINGS frame                                 -> not TLS, HTTP/2
                   answered by a TLS alert record                               -> TLS
                   answered by anything else, or closed without an answer       -> not TLS, no HTTP/2
    refused, timed out, reset, closed in mid-handshake                          -> unknown

An app that answered gets a FIN and is read to its end: a reset for its session tickets would be in its log.

A definite result is kept for the life of a port's app (a container restart or a contradiction drops it). Unknown is
never kept: the next connection probes again. Nothing waits for a probe: each connection is classified by its own bytes,
and the result is for `list`, `status`, refusals and handlers.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

import msgspec

from sidestep.proxy.connection.dial import Dial
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.io.task import Cancel, Operation, Task, Watch
from sidestep.proxy.tls.credentials import watch_certificate_requests
from sidestep.proxy.tls.handshake import LingeringClose, complete

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GOAWAY: Final = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8)
"""GOAWAY with NO_ERROR: the orderly end of the probe's connection."""
NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
"""OpenSSL's reasons for an answer that is no TLS record."""
NO_ANSWER: Final = frozenset({"UNEXPECTED_EOF_WHILE_READING"})
"""OpenSSL's reasons for an end without an alert."""
TELLING: Final = 4
"""Bytes of an answer to the clear preface that tell what it is: the type of an HTTP/2 frame is the fourth."""


class ProbeResult(msgspec.Struct, frozen=True):
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


UNKNOWN: Final = ProbeResult(None)


class ProtocolProbe:
    """One probe. Calls `done(result)` once, within `timeout` seconds, unless cancelled."""

    def __init__(
        self,
        loop: Loop,
        host: str,
        port: int,
        *,
        tls: bool,
        server_name: str | None,
        timeout: float,
        done: Callable[[ProbeResult], None],
    ) -> None:
        self._loop = loop
        self._tls = tls
        self._server_name = server_name
        self._timeout = timeout
        self._done = done
        self._timer = loop.later(timeout, self._expire)
        self._task = Task(self._run(host, port))
        self._task.start()

    def _expire(self) -> None:
        self._task.cancel()
        self._done(UNKNOWN)

    def cancel(self) -> None:
        """Close the connection; nothing is reported."""
        self._timer.cancel()
        self._task.cancel()

    async def _run(self, host: str, port: int) -> None:
        result = UNKNOWN
        try:
            sock = await _connect(self._loop, host, port)
            if sock is not None:
                result = await self._probe(sock)
        except Exception:
            self._done(UNKNOWN)  # a bug of ours: the next connection probes again
            raise
        finally:
            self._timer.cancel()
        self._done(result)

    async def _probe(self, sock: socket.socket) -> ProbeResult:
        """Talk to the app over a connected socket, which is closed in the end."""
        result = UNKNOWN
        watch = Watch(self._loop, sock.fileno(), seconds=self._timeout)
        try:
            result = await (self._shake(sock, watch) if self._tls else _send_preface(sock, watch))
        except (OSError, ValueError):
            pass  # no answer, or a name that cannot be sent
        finally:
            if result.definite:
                watch.release()
                LingeringClose(self._loop, sock)
            else:
                watch.close()
                sock.close()
        return result

    async def _shake(self, sock: socket.socket, watch: Watch) -> ProbeResult:
        """Shake hands. Raises OSError when there is no answer."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        watch_certificate_requests(context, TlsStream.certificate_requested)
        stream = TlsStream(sock, context, server_side=False, server_name=self._server_name)
        try:
            await complete(watch, stream)
        except ssl.SSLError as error:
            return _explain(error, asked=stream.asked)
        chosen = stream.state.selected_alpn_protocol() or ""
        certificate = stream.state.getpeercert(True) or b""
        stream.finish(notify=True)
        return ProbeResult(
            True, http2=chosen == "h2", alpn=chosen, asks_certificate=stream.asked, certificate=certificate
        )


async def _connect(loop: Loop, host: str, port: int) -> socket.socket | None:
    def start(done: Callable[[socket.socket | None], None]) -> Cancel:
        return Dial(loop, host, port, lambda sock, error: done(sock)).cancel  # noqa: ARG005 - whatever the error is

    return await Operation(start)


def _explain(error: ssl.SSLError, *, asked: bool) -> ProbeResult:
    """Tell what a failed handshake says about the app."""
    reason = error.reason or ""
    if not reason or reason in NO_ANSWER:
        return UNKNOWN
    if reason in NOT_TLS:
        return ProbeResult(False)
    return ProbeResult(True, asks_certificate=asked)


async def _send_preface(sock: socket.socket, watch: Watch) -> ProbeResult:
    """Begin HTTP/2 in clear. Raises OSError when there is no answer."""
    sock.send(PREFACE)
    answer = b""
    while True:
        await watch.event(READ)
        try:
            data = sock.recv(64)
        except BlockingIOError:
            continue
        answer += data
        if answer[:1] in (b"\x15", b"\x16"):
            return ProbeResult(True)
        if answer[3:4] == b"\x04" and answer[:1] == b"\x00":
            try:
                sock.send(GOAWAY)
            except OSError:
                pass
            return ProbeResult(False, http2=True)
        if not data or len(answer) >= TELLING:
            return ProbeResult(False, http2=False)
