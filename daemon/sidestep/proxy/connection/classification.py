"""Carries out what `engine.classification` decides about an accepted connection (design 4.1, 4.2).

    WAITING     for the client's first bytes, peeked and not consumed; the detection timeout runs
    SILENT      it is over, and the app was asked: if it speaks first the connection cannot be read; what the client
                says first is still classified. Once the app of a port has greeted a silent client, the next ones are
                not waited for (`LivePort.server_first`): SILENT begins at once
    HELLO       a first message that began, usually a ClientHello (SO_RCVLOWAT waits for more without spinning)
    OPENING     `Bridge` finishes the handshake with the app first, then the one with the client

Until the downstream handshake begins not a byte of the client has been consumed, so until then every verdict can still
be to pass the connection through, untouched. How each way out is taken stands under "verdicts".
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

from sidestep.engine.classification import (
    PEEK,
    AskApp,
    Close,
    Event,
    Http,
    OpenTls,
    Pass,
    PortFacts,
    Unparsed,
    Verdict,
    Wait,
    classify,
    unreadable,
)
from sidestep.engine.mirror.copies import Ledger
from sidestep.engine.passthrough import WireRelay
from sidestep.engine.relay import Leg, OnUnreadable, Relay, Role
from sidestep.model.condition import ConditionType
from sidestep.policy.route import Rule
from sidestep.protocols.detection import is_greeting
from sidestep.proxy.connection.conductor import Conductor
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.establishment import Bridge
from sidestep.proxy.connection.host import ConnectionHost, RelayedConnection
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.relay_choice import relay_for, tapped, whole_rule
from sidestep.proxy.io.loop import BROKEN, READ, Loop, Timer
from sidestep.proxy.io.stream import PlainStream, TlsStream, reset
from sidestep.proxy.tls.credentials import Credentials, presents
from sidestep.proxy.tls.handshake import Failure, asks_later, outcome

GREETING: Final = 16
"""Bytes of an app's first words that tell whether it greets."""


class Reception(ConnectionHost, Protocol):
    """What a judge asks of the worker, besides what a conductor asks."""

    credentials: Credentials
    detection_timeout: float
    ledger: Ledger

    def opened(self, connection: RelayedConnection) -> None:
        """A connection has been judged and runs."""

    def judged_away(self, judge: Judge) -> None:
        """A judge is over, whatever came of it."""

    def gone(self, endpoints: Endpoints) -> None:
        """A connection ended before it was a conductor."""

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """A condition met (or, with an empty text, no longer met) by connections of this port."""

    def asked_later(self, port: LivePort) -> None:
        """The app has asked for a client's certificate after the handshake."""

    def seen(self, port: LivePort, endpoints: Endpoints, *, tls: bool) -> None:
        """A connection began with a ClientHello, or with HTTP in clear."""


class Judge:
    """One accepted connection until it is a conductor."""

    def __init__(
        self, loop: Loop, sock: socket.socket, *, port: LivePort, endpoints: Endpoints, reception: Reception
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._port = port
        self._endpoints = endpoints
        self._reception = reception
        self._app: socket.socket | None = None
        self._cancel: Callable[[], None] | None = None
        self._timer: Timer | None = None
        self._lowat = 1
        self._bridge: Bridge | None = None
        self.whole = whole_rule(port, endpoints.client)
        """A global intercept: its handler stands where the app would."""

    def begin(self) -> None:
        """Look at what is there, and wait for more if need be."""
        self._loop.add(self._fd, self._client_ready, READ)
        verdict = classify(self._facts(), Event.ACCEPTED)
        if isinstance(verdict, Wait):
            self._timer = self._loop.later(verdict.seconds, self._client_silent)
            self._client_ready(READ)
        else:
            self._carry_out(verdict)

    def _facts(self) -> PortFacts:
        port, snapshot, whole = self._port, self._port.snapshot, self.whole is not None
        return PortFacts(
            tls=snapshot.tls,
            certificate=bool(snapshot.identity),
            reads=bool(snapshot.rules),
            whole=whole,
            copied=bool(snapshot.global_taps),
            on_unreadable=port.on_unreadable,
            asks_later=port.asks_later and not whole and not presents(snapshot),
            greets=port.server_first,
            detection_seconds=self._reception.detection_timeout,
        )

    def _happens(self, event: Event) -> None:
        self._carry_out(classify(self._facts(), event))

    # --- what happens -----------------------------------------------------------------------------------------------

    def _client_ready(self, mask: int) -> None:
        sock = self._sock
        if sock is None:
            return
        if self._bridge is not None:
            if mask & BROKEN:  # what it had said can still be read, but may not be judged twice
                self.abandon()
            return
        try:
            data = sock.recv(PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self.abandon()
            return
        if not data:
            self._happens(Event.ENDED)
            return
        verdict = classify(self._facts(), Event.SAID, data)
        if verdict.tls is not None:
            self._port.server_first = False
            self._reception.seen(self._port, self._endpoints, tls=verdict.tls)
        if isinstance(verdict, Wait):
            self._wait_for(len(data), verdict)
        else:
            self._carry_out(verdict)

    def _wait_for(self, have: int, wait: Wait) -> None:
        """Wait for more bytes; the end of the stream wakes as well (socket(7), SO_RCVLOWAT), and is an answer."""
        if self._sock is None:
            return
        if have < self._lowat and self._lowat > 1:
            self._incomplete()  # woken with less than was waited for: no more comes, and epoll would say so without end
            return
        if self._lowat == 1:
            self._restart_timer(wait.seconds, self._incomplete)
        self._lowat = have + wait.more
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._lowat)

    def _incomplete(self) -> None:
        self._happens(Event.INCOMPLETE)

    def _restart_timer(self, delay: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.later(delay, call)

    def _client_silent(self) -> None:
        self._timer = None
        verdict = classify(self._facts(), Event.SILENT)
        if isinstance(verdict, Wait):
            self._timer = self._loop.later(verdict.seconds, self._still_silent)
        else:
            self._carry_out(verdict)

    def _still_silent(self) -> None:
        self._happens(Event.STILL_SILENT)

    def _app_dialled(self, app: socket.socket) -> None:
        self._app = app
        self._loop.add(app.fileno(), self._app_ready, READ)

    def _app_ready(self, mask: int) -> None:
        """The app speaks, or ends, before the client, unless the client has spoken in this very moment."""
        del mask
        if self._lowat == 1 and _first_words(self._sock):
            self._client_ready(READ)
            return
        if self._lowat == 1 and is_greeting(_first_words(self._app)):
            self._port.server_first = True
        self._happens(Event.APP_FIRST)

    # --- verdicts ---------------------------------------------------------------------------------------------------

    def _carry_out(self, verdict: Verdict) -> None:
        match verdict:
            case AskApp():
                self._dial(self._app_dialled)
            case Unparsed():
                self._relay(WireRelay(self.whole, at_once=True), "tcp")
            case Http():
                relay = relay_for(verdict.protocol, self._port, self._reception.ledger, whole=self.whole)
                self._relay(relay, verdict.protocol)
            case OpenTls():
                self._stop_waiting()
                closes = self._port.on_unreadable is OnUnreadable.CLOSE
                probes = closes and self._endpoints.client in self._port.snapshot.pass_sources
                self._bridge = Bridge(self, self._loop, self._port, self._reception, verdict.offer, probes=probes)
                self._bridge.begin()
            case Pass() | Close():
                self._leave_unread(verdict, self._failure(verdict))
            case Wait():
                pass  # something is waited for already

    def _failure(self, verdict: Pass | Close) -> Failure | None:
        """What an operator is told about TLS that cannot be opened."""
        if verdict.condition is None:
            return None
        snapshot = self._port.snapshot
        if verdict.condition is ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER:
            return asks_later(snapshot)
        return Failure(
            verdict.condition,
            f"a client sent {verdict.server_name[:64].decode('latin-1')!r} as its server name, which is no host "
            "name (an address is none) and cannot be sent on: none of its requests is matched, "
            f"{outcome(snapshot)}",
        )

    def end_to_end(self, failure: Failure) -> None:
        """TLS that is not opened; say why. What was dialled for the handshake is closed."""
        self._reception.gone(self._endpoints)
        verdict = unreadable(self._port.on_unreadable, "not-opened", condition=failure.type, tls=True)
        self._leave_unread(verdict, failure)

    def _leave_unread(self, verdict: Pass | Close, failure: Failure | None) -> None:
        """Pass the connection through or close it."""
        if failure is not None:
            self._reception.report(self._port, failure.type, failure.text)
            self._port.counters["tls_passed"] += 1
        if isinstance(verdict, Close):
            self._port.counters["closed_unread"] += 1
            self.abandon()
            return
        relay = WireRelay(self.whole)
        relay.anomaly = verdict.reason if failure is None else None
        self._relay(relay, "tcp")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sock = self._sock
        if sock is not None and self._lowat != 1:
            self._lowat = 1
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._loop.modify(self._fd, 0)

    # --- ways out ---------------------------------------------------------------------------------------------------

    def dial(self, done: Callable[[socket.socket], None]) -> None:
        """A connection to the app: the one dialled for a silent client, or a new one."""
        app, self._app = self._app, None
        if app is not None:
            self._loop.remove(app.fileno())
            done(app)
            return
        if self._cancel is not None:
            self._cancel()
        if self.whole is not None:
            self._ask_handler(self.whole, done)
        else:
            self._dial(done)

    def _ask_handler(self, whole: Rule, done: Callable[[socket.socket], None]) -> None:
        """As `_dial`, for the handler in the app's place; without it the app is there."""

        def finished(stream: PlainStream | None) -> None:
            self._cancel = None
            if stream is not None:
                done(stream.sock)
            else:
                self.whole = None
                self._dial(done)

        self._cancel = self._reception.open_stream(ConnectionInfo(self._endpoints), Leg(Role.HANDLER, whole), finished)

    def _dial(self, done: Callable[[socket.socket], None]) -> None:
        def finished(sock: socket.socket | None, error: OSError | None) -> None:
            self._cancel = None
            if sock is not None:
                try:
                    done(sock)
                except Exception:
                    self.abandon()  # who called could not end this connection
                    raise
                return
            if isinstance(error, ConnectionRefusedError):
                self._reception.no_app(self._port, self._endpoints.host)
            self.abandon()

        self._cancel = self._reception.dial_app(self._endpoints, finished)

    def _relay(self, relay: Relay, protocol: str) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._finish_judging(sock)
        relay = tapped(relay, self._port, self._reception.ledger)
        conductor = self._conductor(relay, protocol)
        conductor.attach(relay.client, PlainStream(sock), watched=True)
        app, self._app = self._app, None
        if app is not None:
            self._loop.remove(app.fileno())
            conductor.attach(relay.app, PlainStream(app), watched=False)
        self._start(conductor)

    def _finish_judging(self, sock: socket.socket) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._lowat != 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _conductor(self, relay: Relay, protocol: str) -> Conductor:
        return Conductor(
            self._loop,
            relay,
            host=self._reception,
            port=self._port,
            endpoints=self._endpoints,
            protocol=protocol,
        )

    def _start(self, conductor: Conductor) -> None:
        self._reception.judged_away(self)
        self._reception.opened(conductor)
        try:
            conductor.begin()
        except Exception:
            conductor.abandon()  # the caller is not the conductor, and could not end it
            raise

    def take(self) -> socket.socket | None:
        """Hand the client's (still watched) socket to a downstream handshake."""
        sock, self._sock = self._sock, None
        return sock

    def run_tls(
        self,
        relay: Relay,
        client: TlsStream,
        app: TlsStream,
        bridge: Bridge,
        *,
        protocol: str,
        words: bytes = b"",
    ) -> None:
        """Both handshakes are done: relay. `words` have been read from the client already."""
        relay = tapped(relay, self._port, self._reception.ledger)
        conductor = Conductor(
            self._loop,
            relay,
            host=self._reception,
            port=self._port,
            endpoints=self._endpoints,
            protocol=protocol,
            tls=True,
            server_name=bridge.server_name or "",
            app_tls=bridge.redial,
        )
        app.before_close = lambda: bridge.remember(app)
        conductor.attach(relay.app, app, watched=False)
        conductor.attach(relay.client, client, watched=True)
        early = app.take_early()
        if early:
            relay.receive(relay.app, early, self._loop.now)
        if words:
            relay.receive(relay.client, words, self._loop.now)
        self._start(conductor)

    def abandon(self) -> None:
        """Reset the client: the app refused, the client broke, or an error of ours."""
        if self._timer is not None:
            self._timer.cancel()
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._bridge is not None:
            self._bridge.cancel()
        for sock in (self._sock, self._app):
            if sock is not None:
                self._loop.remove(sock.fileno())
                reset(sock)
        self._sock = self._app = None
        self._reception.gone(self._endpoints)
        self._reception.judged_away(self)


def _first_words(sock: socket.socket | None) -> bytes:
    """What a peer has said and nobody has read; b"" when that is nothing, or cannot be told."""
    try:
        return sock.recv(GREETING, socket.MSG_PEEK) if sock is not None else b""
    except OSError:
        return b""
