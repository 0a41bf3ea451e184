"""TLS handshakes of the proxy: the client side towards the app, the server side towards the client.

Upstream first (design 4.2): `UpstreamHandshake` runs on a connected socket with the client's SNI and ALPN list and ends
with a stream, or with a `Failure` that names what is missing; the caller then relays the untouched ClientHello on a new
connection. What counts as a failure: a TLS error (alert, verification), the peer closing, the deadline, a
CertificateRequest that nobody opted in to answer, a certificate for another name when the client sent no SNI, an ALPN
choice that this proxy cannot parse.

In TLS 1.3 an app judges our certificate after our side of the handshake is over, and says so by an alert at our first
read. So a handshake in which we show one is *confirmed* first: a session ticket or data mean yes. An app that sends
neither is waited for once, for `CONFIRMATION` seconds.

`DownstreamHandshake` runs the server side once the app's choice is known. It ends only after a client's certificate has
been verified, if one is asked for, and nothing is relayed before it ends. In a session that TLS 1.2 resumes by its id
nothing is verified again, so there it is asked whether the certificate still holds. A client that is refused is told by
an alert; its socket is read for a moment, since closing it with bytes unread would reset the connection and lose it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sidestep.model.condition import ConditionType
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.io.stream import TlsStream, is_ragged_end
from sidestep.proxy.tls.app_names import names_match, openssl_compares
from sidestep.proxy.tls.credentials import Credentials
from sidestep.snapshots.ports import PortSnapshot

TIMEOUT: Final = 10.0
"""Seconds a handshake may take."""
CONFIRMATION: Final = 0.5
"""Seconds for an app to judge our certificate in TLS 1.3."""
FAREWELL: Final = 2.0
"""Seconds for a peer to read the last words, and to end."""
PARSEABLE: Final = frozenset({None, "http/1.1", "http/1.0", "h2"})
"""ALPN choices whose content this proxy can parse; None: the app did not choose."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection is carried end to end."""

    type: ConditionType
    text: str


def outcome(port: PortSnapshot) -> str:
    """What becomes of a connection that cannot be opened, for the text of a condition."""
    if port.forward_client_cert:
        return f"the connection is closed, because sidestep.dev/forward-client-cert.{port.number} is enabled"
    return "TLS is carried end to end"


def asks_later(port: PortSnapshot) -> Failure:
    """The app asks for client certificates after the handshake, which only its client can answer."""
    number = port.number
    return Failure(
        ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER,
        f"the app on port {number} asks clients for a certificate after the handshake (post-handshake authentication, "
        f"renegotiation): for clients that it can ask, {outcome(port)}; where it was not known yet, the connection was "
        f"ended unanswered (sidestep.dev/late-client-auth.{number}: enabled makes it known from the start)",
    )


def _has_expired(certificate: Mapping[str, object]) -> bool:
    end = certificate.get("notAfter")
    return isinstance(end, str) and ssl.cert_time_to_seconds(end) < time.time()


class _Handshake:
    """A TLS handshake driven by the loop, with a deadline. Subclasses say what success means."""

    def __init__(self, loop: Loop, *, timeout: float) -> None:
        self._loop = loop
        self._stream: TlsStream | None = None
        self._timer = loop.later(timeout, self._time_out)

    def _start(self, stream: TlsStream, *, watched: bool) -> None:
        self._stream = stream
        if watched:
            self._loop.rebind(stream.fd, self._ready, READ)
        else:
            self._loop.add(stream.fd, self._ready, READ)
        self._ready(0)

    def _ready(self, mask: int) -> None:
        del mask
        stream = self._stream
        if stream is None:
            return
        try:
            wants = stream.handshake()
        except OSError as error:
            self._fail(error)
            return
        if wants:
            self._loop.modify(stream.fd, wants)
        else:
            self._timer.cancel()
            self._stream = None
            self._finish(stream)

    def _time_out(self) -> None:
        self._fail(TimeoutError("the handshake took too long"))

    def _fail(self, error: OSError) -> None:
        self.cancel()
        self._finish_failed(error)

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._stream is not None

    def cancel(self) -> None:
        """Give up and close the socket; nothing is reported."""
        self._timer.cancel()
        stream, self._stream = self._stream, None
        if stream is not None:
            self._loop.remove(stream.fd)
            stream.close()

    def abandon(self) -> None:
        """A bug was met here: report it as a failed handshake."""
        self._fail(OSError("internal error"))

    def _finish(self, stream: TlsStream) -> None:
        raise NotImplementedError

    def _finish_failed(self, error: OSError) -> None:
        raise NotImplementedError


class UpstreamHandshake(_Handshake):
    """The client side. `done(stream, alpn, None)` (its descriptor no longer watched) or `done(None, None, failure)`."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        port: PortSnapshot,
        credentials: Credentials,
        server_name: str | None,
        alpn: tuple[str, ...],
        askable: bool,
        asked_later: Callable[[], None],
        done: Callable[[TlsStream | None, str | None, Failure | None], None],
    ) -> None:
        """`askable`: see `ClientHello`; `asked_later` is called if the app asks for a certificate later."""
        super().__init__(loop, timeout=TIMEOUT)
        self._port = port
        self._done = done
        self._server_name = server_name
        self._alpn = alpn
        self._name = server_name or port.upstream_name
        self._askable = askable
        self._asked_later = asked_later
        self._tried: TlsStream | None = None
        try:
            self._upstream = credentials.upstream(port)
            stream = self._upstream.wrap(
                sock, alpn=alpn, server_name=server_name, verified_name=self._name, askable=askable
            )
        except (OSError, ValueError, KeyError) as error:
            sock.close()
            failure = error if isinstance(error, OSError) else OSError(str(error))
            loop.later(0.0, lambda: self._fail(failure))
            return
        self._tried = stream
        self._start(stream, watched=False)

    def _finish(self, stream: TlsStream) -> None:
        if self._upstream.confirms and stream.state.version() == "TLSv1.3" and not stream.state.session_reused:
            self._stream = stream
            self._timer = self._loop.later(CONFIRMATION, self._untold)
            self._loop.rebind(stream.fd, self._confirm, READ)
            self._confirm(0)
        else:
            self._settle(stream)

    def _confirm(self, mask: int) -> None:
        del mask
        stream = self._stream
        if stream is None:
            return
        try:
            early = stream.read()
        except OSError as error:
            self._fail(error)
            return
        if early == b"":
            self._fail(ConnectionResetError("the app closed the connection after it had seen our certificate"))
        elif early or (stream.state.session is not None and stream.state.session.has_ticket):
            stream.early = early or b""
            self._confirmed(stream)

    def _untold(self) -> None:
        stream = self._stream
        if stream is not None:
            self._upstream.confirms = False
            self._confirmed(stream)

    def _confirmed(self, stream: TlsStream) -> None:
        self._timer.cancel()
        self._stream = None
        self._settle(stream)

    def _settle(self, stream: TlsStream) -> None:
        self._loop.remove(stream.fd)
        failure = self._judge(stream)
        if failure is None:
            self._upstream.settle(stream, askable=self._askable, asked_later=self._asked_later)
            self._done(stream, stream.state.selected_alpn_protocol(), None)
        else:
            stream.close()
            self._done(None, None, failure)

    def _judge(self, stream: TlsStream) -> Failure | None:
        where = f"port {self._port.number}"
        if stream.asked:
            return self._asked()
        if not (openssl_compares(self._server_name) or self._port.skip_verify):
            certificate = stream.state.getpeercert() or {}
            if not self._name:
                return self._unverified("neither the client nor the certificate of this port says its name")
            if not names_match(certificate, self._name):
                return self._unverified(f"its certificate is not for {self._name}")
        chosen = stream.state.selected_alpn_protocol()
        if chosen not in PARSEABLE:
            return Failure(
                ConditionType.ALPN_UNSUPPORTED,
                f"the app on {where} chose the protocol {chosen!r}, which cannot be filtered; {outcome(self._port)}",
            )
        return None

    def _asked(self) -> Failure:
        number = self._port.number
        return Failure(
            ConditionType.CLIENT_CERTIFICATE_REQUESTED,
            f"the app on port {number} asks clients for a certificate; {outcome(self._port)} unless "
            f"telepresence.io/upstream-tls-secret.{number} (or -path) and "
            f"sidestep.dev/downstream-client-auth.{number}: require (or request) are set",
        )

    def _unverified(self, why: str) -> Failure:
        port = self._port
        authority = "its configured ca.crt" if port.upstream_trust else "the system's certificate authorities"
        return Failure(
            ConditionType.UPSTREAM_UNVERIFIED,
            f"the app on port {port.number} could not be verified as {self._name or '(no name)'} against {authority}: "
            f"{why}; {outcome(port)} (add a ca.crt, or set "
            f"telepresence.io/upstream-insecure-skip-verify.{port.number}: enabled)",
        )

    def _finish_failed(self, error: OSError) -> None:
        if self._tried is not None and self._tried.asked:
            failure = self._asked()
        elif isinstance(error, ssl.SSLCertVerificationError):
            failure = self._unverified(error.verify_message)
        elif isinstance(error, ssl.SSLError) and error.reason and "NO_APPLICATION_PROTOCOL" in error.reason:
            offered = ", ".join(self._alpn)
            failure = Failure(
                ConditionType.ALPN_UNSUPPORTED,
                f"the app on port {self._port.number} knows none of the protocols the client offered ({offered}); "
                f"{outcome(self._port)}",
            )
        else:
            reason = str(error)
            if isinstance(error, ssl.SSLError):
                reason = "the app closed the connection" if is_ragged_end(error) else error.reason or reason
            failure = Failure(
                ConditionType.UPSTREAM_TLS_FAILED,
                f"the TLS handshake with the app on port {self._port.number} failed: {reason}; {outcome(self._port)}",
            )
        self._done(None, None, failure)

    def remember(self, stream: TlsStream) -> None:
        """Keep the session of a good connection for resumption."""
        self._upstream.remember(stream, alpn=self._alpn, server_name=self._server_name, verified_name=self._name)


class DownstreamHandshake(_Handshake):
    """The server side on a watched socket. `done(stream)` (still watched) or `done(None)`."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        done: Callable[[TlsStream | None], None],
    ) -> None:
        super().__init__(loop, timeout=TIMEOUT)
        self._done = done
        fd = sock.fileno()
        try:
            stream = TlsStream(sock, context, server_side=True)
        except OSError as error:
            loop.remove(fd)
            sock.close()
            failure = error
            loop.later(0.0, lambda: self._fail(failure))
            return
        self._start(stream, watched=True)

    def _finish(self, stream: TlsStream) -> None:
        if stream.state.session_reused and _has_expired(stream.state.getpeercert() or {}):
            self._stream = stream
            self._fail(ssl.SSLError("the client's certificate has expired since its session began"))
        else:
            self._done(stream)

    def _fail(self, error: OSError) -> None:
        stream, self._stream = self._stream, None
        self.cancel()
        if stream is not None:
            Farewell(self._loop, stream.sock)
        self._finish_failed(error)

    def _finish_failed(self, error: OSError) -> None:
        del error
        self._done(None)


class Farewell:
    """Half-closes a (watched) socket that is wanted no more and reads it to its end, for a bounded time.

    To close it with bytes unread would reset the connection, and lose what its peer is still to read.
    """

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._timer = loop.later(FAREWELL, self.abandon)
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abandon()
            return
        loop.rebind(sock.fileno(), self._ready, READ)

    def _ready(self, mask: int) -> None:
        del mask
        try:
            if self._sock.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.abandon()

    def abandon(self) -> None:
        """Close."""
        self._timer.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove(self._sock.fileno())
            self._sock.close()
