"""Establishes TLS on both sides of one connection: from a ClientHello to two streams, the app's first.

`TlsEstablishment.run` is one coroutine in three steps (docs/design.md, "TLS"):

    upstream     connect to the app (or to the handler of a global intercept) and shake hands, with the client's SNI and
                 ALPN list; make sure that the port's certificate suits the client
    downstream   answer the client, with the protocol that the app chose
    protocol     if the app chose none, classify the first decrypted bytes

It returns a value. `Established` holds what the relay needs; the verdict in it says how to go on. `TlsFailure` says why
TLS was not opened. A client or an app that breaks, and a client that fails its handshake, raise PeerError.

Invariants
  * Until `downstream` begins, no byte of the client is consumed. A TlsFailure is returned in `upstream` only, so the
    connection can still be passed through untouched.
  * Each descriptor has one owner: `Ends`, or the handshake that runs on it. Whoever cancels the coroutine closes what
    the handshake holds, and then resets what `Ends` holds.
  * Each step has a deadline: that of the dial (`app_dials`) or of the handler (`handler_streams`), that of a handshake,
    and those of `engine.classification.classify_decrypted`.

The object lives on in the relay, to make further TLS streams to the app when the app has closed the first one.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from sidestep.engine.classification import Close, Event, Http, Offer, Pass, Wait, classify_decrypted
from sidestep.engine.leg import Leg, Role
from sidestep.engine.relay import OnUnreadable
from sidestep.model.condition import ConditionType
from sidestep.model.errors import PeerError
from sidestep.policy.route import Rule
from sidestep.proxy.connection.app_connection import dial_app
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.ends import Ends
from sidestep.proxy.connection.first_bytes import DecryptedBytes
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.setup_host import SetupHost
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import PlainStream, Stream, TlsStream
from sidestep.proxy.io.task import Cancel, Operation, Task
from sidestep.proxy.tls import failures
from sidestep.proxy.tls.failures import TlsFailure
from sidestep.proxy.tls.handshake import UpstreamHandshake, answer_client
from sidestep.snapshots.ports import PortSnapshot

CLEARED_BY_SUCCESS: Final = (
    ConditionType.UPSTREAM_UNVERIFIED,
    ConditionType.UPSTREAM_TLS_FAILED,
    ConditionType.CLIENT_CERTIFICATE_REQUESTED,
)
"""Conditions that do not hold any more once a handshake with the app has succeeded."""


class Established(msgspec.Struct, frozen=True):
    """Both handshakes are done; the streams are in `Ends`.

    `verdict` says how to go on with what is inside, and `alpn` what the app chose. `first_bytes` were read from the
    client already.
    """

    verdict: Http | Pass | Close
    alpn: str | None
    first_bytes: bytes = b""


class TlsEstablishment:
    """The handshakes of one connection."""

    def __init__(
        self,
        loop: Loop,
        offer: Offer,
        *,
        port: LivePort,
        endpoints: Endpoints,
        host: SetupHost,
        global_rule: Rule | None,
        answers: Callable[[socket.socket], None],
    ) -> None:
        """`global_rule`: the global intercept whose handler stands where the app would. `answers` is called before a
        client is answered."""
        self._loop = loop
        self.server_name = offer.server_name
        self._alpn = offer.alpn
        self._late_auth = offer.late_auth
        self._offer: Offer | None = offer
        """Until the client is answered: a ClientHello is not kept for the life of its connection."""
        self._port = port
        self._endpoints = endpoints
        self._host = host
        self._answers = answers
        self.global_rule = global_rule
        """None once the handler has been refused and the app was dialled in its place."""
        closes = port.on_unreadable is OnUnreadable.CLOSE
        exempt = closes and endpoints.client in port.snapshot.pass_sources
        self._exempt = exempt and port.snapshot.client_auth == "require"
        """A probe of the kubelet, which a global intercept leaves to the app (`PortSnapshot.pass_sources`), on a port
        that may not be passed through: it is answered without a proof of who it is, and the app is shown no certificate
        for it. Until the app asks for one: then the port's own settings hold."""
        self._handshake: UpstreamHandshake | None = None
        self._chosen: str | None = None

    async def run(self, ends: Ends) -> Established | TlsFailure:
        """Establish TLS; see the module. Raises PeerError."""
        context = await self._upstream(ends)
        if isinstance(context, TlsFailure):
            return context
        app = ends.app
        try:
            sock = ends.take_client_socket()
            self._answers(sock)
            client = ends.client = await answer_client(self._loop, sock, context)
        except OSError as error:
            self._port.counters["downstream_handshake_failed"] += 1
            ends.close_app()
            raise PeerError(f"the handshake with the client failed: {error}") from error
        if not isinstance(app, TlsStream) or self._handshake is None:
            raise PeerError("the app is gone")
        app.before_close = partial(self._handshake.remember, app)
        if self._chosen is not None:
            return Established(Http("h2" if self._chosen == "h2" else "http/1.1", tls=True), self._chosen)
        return await self._classify_decrypted(client, app)

    # --- upstream ---------------------------------------------------------------------------------------------------

    async def _upstream(self, ends: Ends) -> ssl.SSLContext | TlsFailure:
        """Shake hands with the app; return the context to answer the client with."""
        self._handshake = self._new_handshake()
        made = await self._handshake.run(ends.take_app_socket() or await self._connect())
        if self._exempt and isinstance(made, TlsFailure) and made.type is ConditionType.CLIENT_CERTIFICATE_REQUESTED:
            self._exempt = False
            self._handshake = self._new_handshake()
            made = await self._handshake.run(await self._connect())
        if isinstance(made, TlsFailure):
            return made
        context = self._accept_app(made)
        if isinstance(context, TlsFailure):
            made.close()
        else:
            ends.app = made
        return context

    def _accept_app(self, app: TlsStream) -> ssl.SSLContext | TlsFailure:
        """Check that what the app has agreed to can be offered to the client."""
        if self._port.late_client_auth and app.state.version() == "TLSv1.2":
            return failures.late_client_auth(self._port.snapshot)
        self._chosen = app.state.selected_alpn_protocol()
        for kind in CLEARED_BY_SUCCESS:
            self._host.report(self._port, kind, "")
        return self._downstream_context()

    async def _connect(self) -> socket.socket:
        """Connect to the handler of a global intercept, or to the app. Raises PeerError."""
        rule = self.global_rule
        if rule is not None:
            handler: PlainStream | None = await Operation(
                partial(self._host.open_stream, ConnectionInfo(self._endpoints), Leg(Role.HANDLER, rule))
            )
            if handler is not None:
                return handler.sock
            self.global_rule = None
        return await dial_app(self._host, self._port, self._endpoints)

    def _new_handshake(self) -> UpstreamHandshake:
        return UpstreamHandshake(
            self._loop,
            port=self._expected(),
            credentials=self._host.credentials,
            server_name=self.server_name,
            alpn=self._alpn,
            late_auth=self._late_auth,
            on_late_auth=self._late_auth_requested,
        )

    def _late_auth_requested(self) -> None:
        if self.global_rule is None:
            self._host.late_client_auth_seen(self._port)

    def _expected(self) -> PortSnapshot:
        """What the other end has to prove: the app what the port says, a developer's handler nothing."""
        snapshot = self._settings()
        if self.global_rule is None:
            return snapshot
        return msgspec.structs.replace(snapshot, skip_verify=True, upstream_identity="")

    def _settings(self) -> PortSnapshot:
        snapshot = self._port.snapshot
        if self._exempt:
            return msgspec.structs.replace(snapshot, client_auth="request", upstream_identity="")
        return snapshot

    def _downstream_context(self) -> ssl.SSLContext | TlsFailure:
        """Return the context to answer the client with, once it was made sure that it suits the client."""
        credentials, snapshot = self._host.credentials, self._port.snapshot
        offer, self._offer = self._offer, None
        try:
            context = credentials.downstream(self._settings(), self._chosen)
        except (ssl.SSLError, OSError, KeyError) as error:
            return failures.certificate_invalid(snapshot, error)
        if offer is None or not credentials.is_compatible(context, offer.hello, offer.shape):
            return failures.client_unsupported(snapshot)
        return context

    # --- what is inside ---------------------------------------------------------------------------------------------

    async def _classify_decrypted(self, client: TlsStream, app: TlsStream) -> Established:
        first = DecryptedBytes(self._loop, client, app)
        try:
            verdict = classify_decrypted(self._port.on_unreadable, Event.ACCEPTED)
            while isinstance(verdict, Wait):
                event, data = await first.next(verdict)
                verdict = classify_decrypted(self._port.on_unreadable, event, data)
        finally:
            first.close()
        return Established(verdict, None, first.data)

    def app_certificate(self, app: TlsStream) -> Mapping[str, object]:
        """The certificate of the app's stream as `ssl` shows it; empty if it was not verified, or it is closed."""
        return {} if self._handshake is None else self._handshake.certificate(app)

    # --- later ------------------------------------------------------------------------------------------------------

    def connect_again(self, sock: socket.socket, done: Callable[[Stream | None], None]) -> Cancel:
        """Make another TLS stream to the app like the first one, over a connected socket.

        Calls `done(stream)`, or `done(None)` when the handshake fails or the app chooses another protocol this time.
        Never before this returns. The returned function cancels.
        """
        return shake_again(self._loop, self._new_handshake(), sock, self._chosen, done)


def shake_again(
    loop: Loop,
    handshake: UpstreamHandshake,
    sock: socket.socket,
    chosen: str | None,
    done: Callable[[Stream | None], None],
) -> Cancel:
    """Shake hands over a connected socket; as `TlsEstablishment.connect_again`. `chosen` is the protocol to choose."""
    task = Task(_shake_again(handshake, sock, chosen, done))
    loop.later(0.0, task.start)

    def cancel() -> None:
        task.cancel()
        sock.close()

    return cancel


async def _shake_again(
    handshake: UpstreamHandshake, sock: socket.socket, chosen: str | None, done: Callable[[Stream | None], None]
) -> None:
    stream: TlsStream | None = None
    try:
        made = await handshake.run(sock)
        if isinstance(made, TlsStream):
            stream = made
            if made.state.selected_alpn_protocol() != chosen:
                made.close()
                stream = None
    except Exception:
        done(None)
        raise
    done(stream)
