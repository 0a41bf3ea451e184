"""TLS handshakes of the proxy: the client side towards the app, the server side towards the client.

All of them are `complete`, which drives one stream through its handshake: `UpstreamHandshake`, `answer_client`, and the
probe of an app (`proxy.connection.protocol_probe`). They differ in what they do with the outcome.

The handshake with the app comes first (docs/design.md, "TLS"). `UpstreamHandshake` runs on a connected socket with the
client's SNI and ALPN list and returns a stream, or a `TlsFailure` that names what is missing; the caller then passes
the untouched ClientHello on over a new connection. Failures are a TLS error (alert, verification), the peer closing,
the deadline, a CertificateRequest that nobody has agreed to answer, a certificate for another name when the client
sent no SNI, and an ALPN choice that this proxy cannot parse.

In TLS 1.3 an app verifies our certificate after our side of the handshake is over, and refuses it by an alert at our
first read. So a handshake in which we show a certificate is *confirmed*: a session ticket or data mean that it was
accepted. An app that sends neither is waited for once, for CONFIRMATION seconds.

`answer_client` runs the server side once the app's choice of protocol is known. It ends after a client's certificate
has been verified, if one is asked for; nothing is relayed before. In a session that TLS 1.2 resumes by its id no
certificate is verified again, so the one of the session must not have expired. A client that is refused gets an alert,
and its socket is read for a moment: closing it with bytes unread would reset the connection and lose the alert.

Who cancels a handshake closes its socket by that.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Final

from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.io.stream import TlsStream, is_ragged_end
from sidestep.proxy.io.task import Watch
from sidestep.proxy.tls.app_names import names_match, openssl_compares
from sidestep.proxy.tls.certificate_time import certificate_seconds
from sidestep.proxy.tls.credentials import ConnectionCredentials, UpstreamContexts
from sidestep.proxy.tls.failures import (
    TlsFailure,
    alpn_unsupported,
    certificate_requested,
    handshake_failed,
    no_common_alpn,
    unverified,
)
from sidestep.snapshots.ports import PortSnapshot

TIMEOUT: Final = 10.0
"""Seconds a handshake may take."""
CONFIRMATION: Final = 0.5
"""Seconds for an app to verify our certificate in TLS 1.3."""
LINGER: Final = 2.0
"""Seconds for a peer to read the last bytes, and to end."""
PARSEABLE: Final = frozenset({None, "http/1.1", "http/1.0", "h2"})
"""ALPN choices whose content this proxy can parse; None: the app did not choose."""


async def complete(watch: Watch, stream: TlsStream) -> None:
    """Drive a handshake to its end. Raises ssl.SSLError, OSError, and TimeoutError at the deadline of `watch`."""
    while wants := stream.handshake():
        await watch.event(wants)


class UpstreamHandshake:
    """One handshake with an app, as a client."""

    def __init__(
        self,
        loop: Loop,
        *,
        port: PortSnapshot,
        credentials: ConnectionCredentials,
        server_name: str | None,
        alpn: tuple[str, ...],
        late_auth: bool,
        on_late_auth: Callable[[], None],
    ) -> None:
        """`late_auth`: the app could ask this client for a certificate later (`ClientHello.allows_late_auth`).
        `on_late_auth` is called if it does.
        """
        self._loop = loop
        self._port = port
        self._credentials = credentials
        self._server_name = server_name
        self._alpn = alpn
        self._verified_name = server_name or port.upstream_name
        self._late_auth = late_auth
        self._on_late_auth = on_late_auth
        self._contexts: UpstreamContexts | None = None

    async def run(self, sock: socket.socket) -> TlsStream | TlsFailure:
        """Shake hands over a connected socket, which is closed unless a stream is returned.

        The stream's descriptor is not registered with the loop. Never raises.
        """
        try:
            contexts = self._contexts = self._credentials.upstream(self._port)
            stream = contexts.wrap(
                sock,
                alpn=self._alpn,
                server_name=self._server_name,
                verified_name=self._verified_name,
                late_auth=self._late_auth,
            )
        except (OSError, ValueError, KeyError) as error:
            sock.close()
            return self._explain(error if isinstance(error, OSError) else OSError(str(error)), requested=False)
        try:
            failure = await self._shake(contexts, stream)
        except BaseException:
            stream.close()
            raise
        if failure is not None:
            stream.close()
            return failure
        contexts.handshake_done(stream, late_auth=self._late_auth, on_late_auth=self._on_late_auth)
        return stream

    async def _shake(self, contexts: UpstreamContexts, stream: TlsStream) -> TlsFailure | None:
        watch = Watch(self._loop, stream.fd, seconds=TIMEOUT)
        try:
            await complete(watch, stream)
            if contexts.confirms and stream.state.version() == "TLSv1.3" and not stream.state.session_reused:
                await self._confirm(watch, contexts, stream)
        except OSError as error:
            return self._explain(error, requested=stream.asked)
        finally:
            watch.close()
        return self._verify(stream)

    async def _confirm(self, watch: Watch, contexts: UpstreamContexts, stream: TlsStream) -> None:
        """Wait until the app has accepted our certificate. Raises OSError when it has not."""
        watch.restart(CONFIRMATION)
        while True:
            early = stream.read()
            if early == b"":
                raise ConnectionResetError("the app closed the connection after it had seen our certificate")
            if early or (stream.state.session is not None and stream.state.session.has_ticket):
                stream.early = early or b""
                return
            try:
                await watch.event(READ)
            except TimeoutError:
                contexts.confirms = False
                return

    def _verify(self, stream: TlsStream) -> TlsFailure | None:
        """Check what OpenSSL does not."""
        if stream.asked:
            return certificate_requested(self._port)
        if not (openssl_compares(self._server_name) or self._port.skip_verify):
            try:
                certificate = stream.state.getpeercert() or {}
            except ValueError:  # Python decodes names as UTF-8, OpenSSL does not
                why = "its certificate has a name that is not UTF-8"
                return unverified(self._port, self._verified_name, why)
            if not self._verified_name:
                why = "neither the client nor the certificate of this port says its name"
                return unverified(self._port, self._verified_name, why)
            if not names_match(certificate, self._verified_name):
                why = f"its certificate is not for {self._verified_name}"
                return unverified(self._port, self._verified_name, why)
        chosen = stream.state.selected_alpn_protocol()
        return None if chosen in PARSEABLE else alpn_unsupported(self._port, chosen)

    def _explain(self, error: OSError, *, requested: bool) -> TlsFailure:
        if requested:
            return certificate_requested(self._port)
        if isinstance(error, ssl.SSLCertVerificationError):
            return unverified(self._port, self._verified_name, error.verify_message)
        if isinstance(error, ssl.SSLError) and _is_no_application_protocol(error):
            return no_common_alpn(self._port, self._alpn)
        reason = str(error)
        if isinstance(error, ssl.SSLError):
            reason = "the app closed the connection" if is_ragged_end(error) else error.reason or reason
        return handshake_failed(self._port, reason)

    def certificate(self, stream: TlsStream) -> Mapping[str, object]:
        """The app's certificate as `ssl` shows it; empty if it was not verified."""
        return {} if self._contexts is None or stream.state is None else self._contexts.certificate(stream)

    def remember(self, stream: TlsStream) -> None:
        """Keep the session of a good connection for resumption."""
        if self._contexts is not None:
            self._contexts.remember(
                stream, alpn=self._alpn, server_name=self._server_name, verified_name=self._verified_name
            )


async def answer_client(loop: Loop, sock: socket.socket, context: ssl.SSLContext) -> TlsStream:
    """Shake hands with a client, as a server, over a socket that is registered with the loop.

    Returns a stream whose descriptor is still registered. Raises OSError; the socket is then closed, or about to be.
    """
    fd = sock.fileno()
    try:
        stream = TlsStream(sock, context, server_side=True)
    except OSError:
        loop.remove(fd)
        sock.close()
        raise
    try:
        watch = Watch(loop, fd, seconds=TIMEOUT, registered=True)
        try:
            await complete(watch, stream)
        finally:
            watch.close()
        if stream.state.session_reused and _has_expired(stream.state.getpeercert() or {}):
            raise ssl.SSLError("the client's certificate has expired since its session began")
    except OSError:
        LingeringClose(loop, sock)
        raise
    except BaseException:
        loop.remove(fd)
        stream.close()
        raise
    return stream


def _is_no_application_protocol(error: ssl.SSLError) -> bool:
    """Whether a server's alert said that it knows no protocol of the client's list (RFC 7301 section 3.2).

    Python 3.11 has no `reason` for this alert; only OpenSSL's own text names it.
    """
    return "NO_APPLICATION_PROTOCOL" in (error.reason or str(error).upper().replace(" ", "_"))


def _has_expired(certificate: Mapping[str, object]) -> bool:
    end = certificate.get("notAfter")
    seconds = certificate_seconds(end) if isinstance(end, str) else None
    return seconds is not None and seconds < time.time()


class LingeringClose:
    """Half-closes a (registered) socket that is not wanted any more and reads it to its end, within LINGER seconds.

    Closing it with bytes unread would reset the connection, and lose what its peer has yet to read.
    """

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._timer = loop.later(LINGER, self.abandon)
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
