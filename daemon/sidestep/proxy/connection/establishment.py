"""From a ClientHello to two TLS streams: upstream first, then the client (design 4.2).

    DIALLING     the app, on the client's behalf
    UPSTREAM     a handshake with the client's SNI and ALPN list; a failure gives the connection back, untouched, and so
                 does a certificate of the port's that does not suit the client
    DOWNSTREAM   the client is answered with the protocol that the app chose; a failure ends the connection
    WORDS        the app chose no protocol: the client's first decrypted bytes tell, or the app speaks first

After that the judge is told to run the relay. A `Bridge` lives on as the maker of further streams to the app like the
first one, for exchanges that come when the app has closed it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Protocol

import msgspec

from sidestep.engine.classification import Close, Http, Offer, Pass, Wait, classify_decrypted, unreadable
from sidestep.engine.mirror.copies import Ledger
from sidestep.engine.passthrough import WireRelay
from sidestep.engine.relay import Relay
from sidestep.model.condition import ConditionType
from sidestep.policy.route import Rule
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.relay_choice import relay_for
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.io.stream import Stream, TlsStream
from sidestep.proxy.tls.credentials import Credentials
from sidestep.proxy.tls.handshake import DownstreamHandshake, Failure, UpstreamHandshake, asks_later, outcome
from sidestep.snapshots.ports import PortSnapshot


class Answers(Protocol):
    """What a bridge asks of the worker."""

    @property
    def credentials(self) -> Credentials:
        """Key material and contexts."""

    @property
    def ledger(self) -> Ledger:
        """The accounts of copies."""

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """A condition met (or, with an empty text, no longer met) by connections of this port."""

    def asked_later(self, port: LivePort) -> None:
        """The app has asked for a client's certificate after the handshake."""


class Judged(Protocol):
    """The connection that is being judged."""

    whole: Rule | None
    """A global intercept whose handler stands where the app would."""

    def dial(self, done: Callable[[socket.socket], None]) -> None:
        """Connect to the app."""

    def end_to_end(self, failure: Failure) -> None:
        """TLS between client and app, untouched; say why."""

    def take(self) -> socket.socket | None:
        """The client's (still watched) socket."""

    def run_tls(
        self, relay: Relay, client: TlsStream, app: TlsStream, bridge: Bridge, *, protocol: str, words: bytes = b""
    ) -> None:
        """Both handshakes are done: relay. `words` have been read from the client already."""

    def abandon(self) -> None:
        """End it."""


class Bridge:
    """The two handshakes of one TLS connection, upstream first, and fresh upstream streams like the first one."""

    def __init__(
        self,
        judge: Judged,
        loop: Loop,
        port: LivePort,
        reception: Answers,
        offer: Offer,
        *,
        probes: bool = False,
    ) -> None:
        """`probes`: the client is one that a global intercept leaves to the app (`PortSnapshot.pass_sources`), on a
        port where what cannot be opened is closed.
        """
        self._judge = judge
        self._loop = loop
        self.port = port
        self._reception = reception
        self.ledger = reception.ledger
        self.server_name = offer.server_name
        self._alpn = offer.alpn
        self._askable = offer.askable
        self._unproved = probes and port.snapshot.client_auth == "require"
        """The client need not prove who it is, and the app is shown no certificate for it: a probe of the kubelet is
        answered as without us. Until the app asks for a certificate: then the port's own settings hold."""
        self._offer: Offer | None = offer
        """Kept until the client is answered."""
        self._upstream: UpstreamHandshake | None = None
        self._chosen: str | None = None
        self._give_up: Callable[[], None] | None = None
        """Ends what follows the upstream handshake, while it goes on."""

    def begin(self) -> None:
        """Dial the app and shake hands with it."""
        self._judge.dial(self._dialled)

    def _dialled(self, app: socket.socket) -> None:
        self._upstream = self._shake(app, self._alpn, self._upstream_done)

    def _shake(
        self,
        app: socket.socket,
        alpn: tuple[str, ...],
        done: Callable[[TlsStream | None, str | None, Failure | None], None],
    ) -> UpstreamHandshake:
        return UpstreamHandshake(
            self._loop,
            app,
            port=self._expected(),
            credentials=self._reception.credentials,
            server_name=self.server_name,
            alpn=alpn,
            askable=self._askable,
            asked_later=self._asked_later,
            done=done,
        )

    def _asked_later(self) -> None:
        if self._judge.whole is None:
            self._reception.asked_later(self.port)

    def _expected(self) -> PortSnapshot:
        """What the other end has to prove: the app as the port says, a developer's handler nothing."""
        snapshot = self._settings()
        if self._judge.whole is None:
            return snapshot
        return msgspec.structs.replace(snapshot, skip_verify=True, upstream_identity="")

    def _settings(self) -> PortSnapshot:
        snapshot = self.port.snapshot
        if self._unproved:
            return msgspec.structs.replace(snapshot, client_auth="request", upstream_identity="")
        return snapshot

    def _upstream_done(self, stream: TlsStream | None, chosen: str | None, failure: Failure | None) -> None:
        if self._unproved and failure is not None and failure.type is ConditionType.CLIENT_CERTIFICATE_REQUESTED:
            self._unproved = False
            self.begin()
            return
        if stream is None:
            self._judge.end_to_end(failure or Failure(ConditionType.UPSTREAM_TLS_FAILED, "unknown"))
            return
        if self.port.asks_later and stream.state.version() == "TLSv1.2":
            stream.close()
            self._judge.end_to_end(asks_later(self.port.snapshot))
            return
        self._chosen = chosen
        for kind in (
            ConditionType.UPSTREAM_UNVERIFIED,
            ConditionType.UPSTREAM_TLS_FAILED,
            ConditionType.CLIENT_CERTIFICATE_REQUESTED,
        ):
            self._reception.report(self.port, kind, "")
        try:
            context = self._reception.credentials.downstream(self._settings(), chosen)
        except (ssl.SSLError, OSError, KeyError) as error:
            stream.close()
            self._judge.end_to_end(
                Failure(
                    ConditionType.CERTIFICATE_INVALID, f"the certificate of port {self.port.steered.number}: {error}"
                )
            )
            return
        offer, self._offer = self._offer, None
        if offer is None or not self._reception.credentials.suits(context, offer.hello, offer.shape):
            stream.close()
            number = self.port.steered.number
            self._judge.end_to_end(
                Failure(
                    ConditionType.CLIENT_TLS_UNSUPPORTED,
                    f"a client knows no cipher or signature that goes with the certificate of port {number}; "
                    f"{outcome(self.port.snapshot)}",
                )
            )
            return
        client = self._judge.take()
        if client is None:
            stream.close()
            return
        self._greet(client, context, stream, chosen)

    def cancel(self) -> None:
        """The connection is over: give up whatever goes on. `end_to_end` is not called."""
        if self._upstream is not None:
            self._upstream.cancel()
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    def _greet(self, client: socket.socket, context: ssl.SSLContext, app: TlsStream, chosen: str | None) -> None:
        def done(downstream: TlsStream | None) -> None:
            self._give_up = None
            if downstream is None:
                self.port.counters["downstream_handshake_failed"] += 1
                app.close()
                self._judge.abandon()
                return
            if chosen is None:
                words = FirstWords(self._judge, self._loop, self, downstream, app)
                self._give_up = words.close
                words.begin()
                return
            relay = relay_for(chosen, self.port, self._reception.ledger, downstream, whole=self._judge.whole)
            self._judge.run_tls(relay, downstream, app, self, protocol=chosen)

        greeting = DownstreamHandshake(self._loop, client, context, done=done)
        if greeting.running:

            def give_up() -> None:
                greeting.cancel()
                app.close()

            self._give_up = give_up

    def settled(self) -> None:
        """The relay has both streams: they are its own from now on."""
        self._give_up = None

    def redial(self, sock: socket.socket, done: Callable[[Stream | None], None]) -> Callable[[], None]:
        """A fresh TLS stream to the app, with the same name, for the same protocol."""

        def finished(stream: TlsStream | None, chosen: str | None, failure: Failure | None) -> None:
            del failure
            if stream is not None and chosen != self._chosen:
                stream.close()
                stream = None
            done(stream)

        return self._shake(sock, self._alpn, finished).cancel

    def remember(self, app: TlsStream) -> None:
        """Keep the session of the first upstream connection."""
        if self._upstream is not None:
            self._upstream.remember(app)


class FirstWords:
    """A TLS connection whose app chose no protocol: the client's first decrypted bytes tell, or an app that begins."""

    def __init__(self, judge: Judged, loop: Loop, bridge: Bridge, client: TlsStream, app: TlsStream) -> None:
        self._judge = judge
        self._loop = loop
        self._bridge = bridge
        self._client = client
        self._app = app
        self._words = b""

    def begin(self) -> None:
        """Watch both sides."""
        self._loop.rebind(self._client.fd, self._client_ready, READ)
        self._loop.add(self._app.fd, self._app_ready, READ)
        if self._app.early:
            self._app_first()
        else:
            self._client_ready(READ)

    def _client_ready(self, mask: int) -> None:
        del mask
        try:
            data = self._client.read()
        except OSError:
            self.abandon()
            return
        if data is None:
            return
        self._words += data
        port = self._bridge.port
        verdict = classify_decrypted(port.on_unreadable, self._words, ended=not data)
        if isinstance(verdict, Http):
            relay = relay_for(verdict.protocol, port, self._bridge.ledger, self._client, whole=self._judge.whole)
            self._run(relay, verdict.protocol)
        elif not isinstance(verdict, Wait):
            self._leave_unread(verdict)

    def _app_ready(self, mask: int) -> None:
        """The app's descriptor is readable after every TLS 1.3 handshake: session tickets are no words of the app."""
        del mask
        try:
            data = self._app.read()
        except OSError:
            self.abandon()
            return
        if data is not None:
            self._app.early = data
            self._app_first()

    def _app_first(self) -> None:
        self._leave_unread(unreadable(self._bridge.port.on_unreadable, "tls-server-first", tls=True))

    def _leave_unread(self, verdict: Pass | Close) -> None:
        """Pass the connection through or close it. The relay sees an end that was read here after the words."""
        if isinstance(verdict, Close):
            self._bridge.port.counters["closed_unread"] += 1
            self.abandon()
            return
        relay = WireRelay()
        relay.anomaly = verdict.reason
        self._run(relay, "tcp")

    def _run(self, relay: Relay, protocol: str) -> None:
        self._loop.remove(self._app.fd)
        self._bridge.settled()
        self._judge.run_tls(relay, self._client, self._app, self._bridge, protocol=protocol, words=self._words)

    def abandon(self) -> None:
        """The client broke, or an error of ours."""
        self._bridge.settled()
        self.close()
        self._judge.abandon()

    def close(self) -> None:
        """Reset both sides; once."""
        for stream in (self._client, self._app):
            self._loop.remove(stream.fd)
            stream.reset()
