"""Key material of this pod: named memfds, and the SSLContexts built from them.

The daemon sends a credential as a memfd and names it by digest; `add` proves that it loads. A context is always built
fresh: loading into a live one mixes old and new, and a failed load breaks it. Contexts are cached by what they depend
on:

    downstream   (identity, client trust, client_auth, ALPN): OpenSSL's server side reads its ALPN list from the context
                 while the handshake runs, so there is one context for each protocol that an app chose (two or three)
    upstream     (identity, trust, verification): the client side copies the ALPN list when the connection object is
                 made, so one context serves every list; `UpstreamContexts.wrap` sets it right before

A CertificateRequest of the app is seen through the context's message callback. It is private, and the only way: `ssl`
shows no such event; `interpreter` checks that it is there. The callback costs 1 microsecond for each TLS record, so an
established connection is moved to a twin context without one. A connection whose client the app could ask for a
certificate after the handshake keeps the callback: OpenSSL would answer in the proxy's name.

Sessions for resumption are kept by (context, ALPN list, SNI, verified name). A resumed handshake skips the name check,
so a session must never be offered under another name (measured: one of `app.test` was accepted for `evil.test`).
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.tls.app_names import openssl_compares
from sidestep.proxy.tls.compatibility import CompatibilityCheck, Shape
from sidestep.proxy.tls.interpreter import set_message_callback
from sidestep.proxy.tls.issuing import IssuedLeaves, Issuer
from sidestep.snapshots.ports import PortSnapshot

MAX_PEM: Final = 1024 * 1024
"""Bytes of one credential."""
MAX_SESSIONS: Final = 256
"""Upstream sessions kept per context; the oldest goes first."""
MAX_DOWNSTREAM: Final = 32
"""Downstream contexts kept; an app chooses among a handful of protocols."""
_HANDSHAKE: Final = 22
_CERTIFICATE_REQUEST: Final = 13

_Session = tuple[tuple[str, ...], str | None, str]


def watch_certificate_requests(context: ssl.SSLContext, tell: Callable[[Any], None]) -> None:
    """Call `tell(owner)` when the server of a connection of this context sends a CertificateRequest.

    The owner is the `TlsStream` (or `ssl.SSLSocket`) to which the connection belongs.
    """

    def on_message(owner: Any, direction: str, version: int, content: int, message: int, data: bytes) -> None:
        del version, data
        if message == _CERTIFICATE_REQUEST and content == _HANDSHAKE and direction == "read" and owner is not None:
            tell(owner)

    set_message_callback(context, on_message)


def presents_certificate(port: PortSnapshot) -> bool:
    """Whether the app is shown our certificate instead of its clients', because the port's annotations say so."""
    return port.client_auth in ("require", "request") and bool(port.upstream_identity)


class UpstreamContexts:
    """Client contexts towards the app for one set of settings."""

    def __init__(self, context: ssl.SSLContext, quiet: ssl.SSLContext, *, watches_requests: bool) -> None:
        self._context = context
        self._quiet = quiet
        self._alpn: tuple[str, ...] = ()
        self._sessions: OrderedDict[_Session, ssl.SSLSession] = OrderedDict()
        self.presents = not watches_requests
        """Our certificate answers whenever the app asks for one."""
        self.confirms = self.presents
        """A certificate is shown, and the app is expected to send something once it has verified it (TLS 1.3)."""
        if watches_requests:
            watch_certificate_requests(context, TlsStream.certificate_requested)

    def wrap(
        self, sock: Any, *, alpn: tuple[str, ...], server_name: str | None, verified_name: str, late_auth: bool = False
    ) -> TlsStream:
        """Begin a client handshake. `late_auth`: a server could ask the client for a certificate after the handshake.

        Raises OSError, or ValueError for a name that `ssl` cannot send.
        """
        context = self._context
        context.post_handshake_auth = late_auth or self.presents
        if alpn != self._alpn:
            context.set_alpn_protocols(list(alpn))
            self._alpn = alpn
        if context.verify_mode != ssl.CERT_NONE:
            context.check_hostname = openssl_compares(server_name)
        session = self._sessions.get((alpn, server_name, verified_name))
        return TlsStream(sock, context, server_side=False, server_name=server_name, session=session)

    def handshake_done(
        self, stream: TlsStream, *, late_auth: bool = False, on_late_auth: Callable[[], None] | None = None
    ) -> None:
        """Stop watching the messages of an established connection, unless the app may ask for a certificate in TLS 1.3.

        In TLS 1.2 it would ask by a renegotiation, which OpenSSL refuses; the app then ends the connection by an alert.
        """
        if stream.state.version() != "TLSv1.3":
            stream.on_late_auth, stream.renegotiable = on_late_auth, True
        elif late_auth and not self.presents:
            stream.on_late_auth = on_late_auth
            return
        if self._quiet is not self._context:
            stream.state.context = self._quiet

    def certificate(self, stream: TlsStream) -> Mapping[str, object]:
        """The app's certificate as `ssl` shows it; empty if it was not verified, or has names that are not UTF-8.

        `ssl` shows it for a context that verifies only, which the quiet one does not.
        """
        kept = stream.state.context
        try:
            stream.state.context = self._context
            return stream.state.getpeercert() or {}
        except ValueError:
            return {}
        finally:
            stream.state.context = kept

    def remember(
        self, stream: TlsStream, *, alpn: tuple[str, ...], server_name: str | None, verified_name: str
    ) -> None:
        """Keep the session of a good connection, unless the connection was itself resumed from the kept one."""
        key = (alpn, server_name, verified_name)
        sessions = self._sessions
        try:
            if key in sessions and stream.state.session_reused:
                return
            if self._quiet is not self._context:
                stream.state.context = self._context
            session = stream.state.session
            if self._quiet is not self._context:
                stream.state.context = self._quiet
        except (OSError, ValueError):
            return
        if session is not None and session.has_ticket:
            sessions[key] = session
            sessions.move_to_end(key)
            if len(sessions) > MAX_SESSIONS:
                sessions.popitem(last=False)


class ConnectionCredentials(Protocol):
    """What the handshakes of one connection take; `Credentials` are those of connections that pods accept."""

    def upstream(self, port: PortSnapshot) -> UpstreamContexts:
        """As `Credentials.upstream`."""

    def downstream(self, port: PortSnapshot, alpn: str | None) -> ssl.SSLContext:
        """As `Credentials.downstream`."""

    def is_compatible(self, context: ssl.SSLContext, hello: bytes, shape: Shape) -> bool:
        """Whether a downstream context can answer a ClientHello."""


@dataclass(slots=True)
class _Pem:
    kind: str
    fd: int


class IssuedCredentials:
    """The credentials of one connection of the pod whose client is answered with a certificate for `name`."""

    __slots__ = ("_credentials", "_leaves", "_name")

    def __init__(self, credentials: ConnectionCredentials, leaves: IssuedLeaves, name: str) -> None:
        self._credentials = credentials
        self._leaves = leaves
        self._name = name

    def upstream(self, port: PortSnapshot) -> UpstreamContexts:
        """As `Credentials.upstream`."""
        return self._credentials.upstream(port)

    def downstream(self, port: PortSnapshot, alpn: str | None) -> ssl.SSLContext:
        """As `Credentials.downstream`."""
        del port
        return self._leaves.context(self._name, alpn)

    def is_compatible(self, context: ssl.SSLContext, hello: bytes, shape: Shape) -> bool:
        """As `Credentials.is_compatible`."""
        return self._credentials.is_compatible(context, hello, shape)


class Credentials:
    """The credentials of a pod. `trust_store` is the context with the system's authorities, made in the zygote."""

    def __init__(self, trust_store: ssl.SSLContext) -> None:
        self._trust_store = trust_store
        self._pems: dict[str, _Pem] = {}
        self._downstream: OrderedDict[tuple[object, ...], ssl.SSLContext] = OrderedDict()
        self._upstream: dict[tuple[object, ...], UpstreamContexts] = {}
        self._issued: dict[str, IssuedLeaves] = {}
        self._compatibility = CompatibilityCheck()

    def add(self, name: str, kind: str, fd: int) -> None:
        """Take a memfd. Raises ssl.SSLError, OSError or ValueError when it does not load, after closing it."""
        try:
            if os.fstat(fd).st_size > MAX_PEM:
                raise ValueError(f"credential {name} is larger than {MAX_PEM} bytes")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            issuer = None
            if kind in ("identity", "issuer"):
                context.load_cert_chain(_path(fd))
                issuer = Issuer(os.pread(fd, MAX_PEM, 0)) if kind == "issuer" else None
            elif kind == "trust":
                context.load_verify_locations(cafile=_path(fd))
            else:
                raise ValueError(f"unknown kind of credential {kind!r}")
        except BaseException:
            os.close(fd)
            raise
        if issuer is not None:
            self._issued[name] = IssuedLeaves(issuer)
        old = self._pems.get(name)
        self._pems[name] = _Pem(kind, fd)
        if old is not None:
            os.close(old.fd)

    def keep(self, names: set[str]) -> None:
        """Drop every credential that is not in `names`, and every context that was built from one."""
        for name in [name for name in self._pems if name not in names]:
            os.close(self._pems.pop(name).fd)
            self._issued.pop(name, None)
        for cache in (self._downstream, self._upstream):
            for key in [key for key in cache if any(part and part not in names for part in key[:2])]:
                del cache[key]

    def __contains__(self, name: str) -> bool:
        return name in self._pems

    def is_compatible(self, context: ssl.SSLContext, hello: bytes, shape: Shape) -> bool:
        """Whether a downstream context can answer a ClientHello."""
        return self._compatibility.is_compatible(context, hello, shape)

    def downstream(self, port: PortSnapshot, alpn: str | None) -> ssl.SSLContext:
        """Return the server context for one ALPN protocol (None: the extension is not answered).

        Raises OSError, or KeyError for a credential that is not there.
        """
        key = (port.identity, port.client_trust, port.client_auth, alpn)
        context = self._downstream.get(key)
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            _be_strict(context)
            context.load_cert_chain(_path(self._pems[port.identity].fd))
            if port.client_auth in ("require", "request"):
                context.verify_mode = ssl.CERT_REQUIRED if port.client_auth == "require" else ssl.CERT_OPTIONAL
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                if port.client_trust:
                    context.load_verify_locations(cafile=_path(self._pems[port.client_trust].fd))
                # Resuming a session skips the certificate: one that has expired meanwhile would go unnoticed.
                # (TLS 1.2 resumes by session ids as well, which `ssl` cannot forbid: see `handshake`.)
                context.options |= ssl.OP_NO_TICKET
                context.num_tickets = 0
            if alpn is not None:
                context.set_alpn_protocols([alpn])
            self._downstream[key] = context
            if len(self._downstream) > MAX_DOWNSTREAM:
                self._downstream.popitem(last=False)
        return context

    def issued(self, name: str) -> IssuedLeaves | None:
        """What answers clients in the name of a CA; None if this credential is none."""
        return self._issued.get(name)

    def upstream(self, port: PortSnapshot) -> UpstreamContexts:
        """Return the client contexts for a port. Raises OSError, or KeyError for a credential that is not there."""
        shows = presents_certificate(port)
        identity = port.upstream_identity if shows else ""
        key = (identity, port.upstream_trust, port.skip_verify)
        upstream = self._upstream.get(key)
        if upstream is None:
            context = self._client_context(identity, port)
            quiet = context if shows else self._client_context(identity, port, verify=False)
            upstream = self._upstream[key] = UpstreamContexts(context, quiet, watches_requests=not shows)
        return upstream

    def _client_context(self, identity: str, port: PortSnapshot, *, verify: bool = True) -> ssl.SSLContext:
        if verify and not port.skip_verify and not port.upstream_trust and not identity:
            context = self._trust_store
            _be_strict(context)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            return context
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _be_strict(context)
        if identity:
            context.load_cert_chain(_path(self._pems[identity].fd))
        if not verify or port.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif port.upstream_trust:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(cafile=_path(self._pems[port.upstream_trust].fd))
        else:
            context.load_verify_locations(cadata=b"".join(self._trust_store.get_ca_certs(binary_form=True)))
        return context


def _be_strict(context: ssl.SSLContext) -> None:
    """Forbid renegotiation, and report an end without close_notify as an error, which `ssl` hides by default."""
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF


def _path(fd: int) -> str:
    """Return the path of a memfd: OpenSSL takes certificates with trust settings from files only."""
    return f"/proc/self/fd/{fd}"
