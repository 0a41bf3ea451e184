"""The first bytes of an accepted connection, peeked and not consumed, decide what it is (design 4.1, 4.2).

    WAITING     for the client's first bytes; the detection timeout runs
      bytes  -> TLS with a certificate for the port: HELLO; HTTP/2 preface, HTTP/1 request line: relay; else: wire
      silent -> SILENT: the app is dialled; if it speaks first, wire; the client's first bytes are still judged.
                Once the app of a port has greeted a silent client, the next ones are not waited for
                (`LivePort.server_first`): SILENT begins at once, and bytes of the client still come first
    HELLO       a ClientHello, possibly incomplete (SO_RCVLOWAT waits for more without spinning)
      whole  -> DIALLING the app, then the upstream handshake, then the downstream one, then relay by ALPN
      anything that we cannot reproduce, and any upstream failure: TLS end to end on a fresh dial

Until the downstream handshake begins not a byte of the client has been consumed, so every way out of here can still be
a wire - or, on a port that forwards the client's identity (`sidestep.dev/forward-client-cert`), an end. On any other
port a global intercept is not parsed: it goes to the handler at once (its kubelet probes excepted).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

from sidestep.engine.relay import Leg, Relay, Role
from sidestep.engine.taps import Ledger
from sidestep.engine.wire import WireRelay
from sidestep.model.condition import ConditionType
from sidestep.policy.route import Rule
from sidestep.protocols import client_hello
from sidestep.protocols.detection import Detected, detect, is_greeting
from sidestep.proxy.bridge import Bridge, Offer
from sidestep.proxy.conduit import Conduit, Courier, Endpoint, Raw
from sidestep.proxy.credentials import Credentials, presents
from sidestep.proxy.handshake import Failure, asks_later, outcome
from sidestep.proxy.loop import BROKEN, READ, Loop, Timer
from sidestep.proxy.ports import LivePort
from sidestep.proxy.relays import relay_for, tapped, whole_rule
from sidestep.proxy.stream import PlainStream, TlsStream, reset

PEEK: Final = 64 * 1024
"""Bytes of a connection looked at before it is judged; a ClientHello is far smaller."""
GREETING: Final = 16
"""Bytes of an app's first words that tell whether it greets."""
HELLO_TIMEOUT: Final = 10.0
"""Seconds for the rest of a first message that began; then the connection is a wire."""

SILENCE_TIMEOUT: Final = 60.0
"""Seconds for the first byte of a client that has nobody else to wait for: what servers commonly give
(nginx: client_header_timeout 60s)."""


class Reception(Courier, Protocol):
    """What a judge asks of the worker, besides what a conduit asks."""

    credentials: Credentials
    detection_timeout: float
    ledger: Ledger

    def opened(self, conduit: Conduit) -> None:
        """A connection has been judged and runs."""

    def judged_away(self, judge: Judge) -> None:
        """A judge is over, whatever came of it."""

    def gone(self, endpoint: Endpoint) -> None:
        """A connection ended before it was a conduit."""

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """A condition met (or, with an empty text, no longer met) by connections of this port."""

    def asked_later(self, port: LivePort) -> None:
        """The app has asked for a client's certificate after the handshake."""

    def seen(self, port: LivePort, endpoint: Endpoint, *, tls: bool) -> None:
        """A connection began with a ClientHello, or with HTTP in clear."""


class Judge:
    """One accepted connection until it is a conduit."""

    def __init__(
        self, loop: Loop, sock: socket.socket, *, port: LivePort, endpoint: Endpoint, reception: Reception
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._port = port
        self._endpoint = endpoint
        self._reception = reception
        self._app: socket.socket | None = None
        self._cancel: Callable[[], None] | None = None
        self._timer: Timer | None = None
        self._lowat = 1
        self._silent = False
        self._bridge: Bridge | None = None
        self.whole = whole_rule(port, endpoint.client)
        """A global intercept: its handler stands where the app would."""

    def begin(self) -> None:
        """Look at what is there, and wait for more if need be."""
        self._loop.add(self._fd, self._client_ready, READ)
        snapshot = self._port.snapshot
        reads = snapshot.rules or snapshot.forward_client_cert
        if not reads and (self.whole is not None or snapshot.global_taps):
            self._relay(WireRelay(self.whole, at_once=True), "tcp")
            return
        waits = self.whole is not None or not self._port.server_first
        self._timer = self._loop.later(self._reception.detection_timeout if waits else 0.0, self._client_silent)
        self._client_ready(READ)

    # --- first bytes ------------------------------------------------------------------------------------------------

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
            self._wire("silent-client")
            return
        detected = detect(data)
        if detected is Detected.MORE:
            self._wait_for(len(data), 1)
        elif detected is Detected.TLS:
            self._port.server_first = False
            self._reception.seen(self._port, self._endpoint, tls=True)
            self._hello(data)
        elif detected in (Detected.HTTP1, Detected.HTTP2):
            self._clear("h2" if detected is Detected.HTTP2 else "http/1.1")
        else:
            self._wire("not-http")

    def _clear(self, protocol: str) -> None:
        """HTTP without TLS."""
        self._port.server_first = False
        self._reception.seen(self._port, self._endpoint, tls=False)
        if self._port.snapshot.tls == "always":
            self._wire("clear-on-tls-port")
        else:
            self._relay(relay_for(protocol, self._port, self._reception.ledger, whole=self.whole), protocol)

    def _wait_for(self, have: int, more: int) -> None:
        """Wait for `more` bytes; the end of the stream wakes as well (socket(7), SO_RCVLOWAT), and is an answer."""
        if self._sock is None:
            return
        if have < self._lowat and self._lowat > 1:
            self._incomplete()  # woken with less than was waited for: no more comes, and epoll would say so without end
            return
        if have >= PEEK:
            self._wire("unjudged")  # more than any first message holds
            return
        if self._lowat == 1:
            self._restart_timer(HELLO_TIMEOUT, self._incomplete)
        self._lowat = have + more
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._lowat)

    def _incomplete(self) -> None:
        self._wire("incomplete-first-message")

    def _restart_timer(self, delay: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.later(delay, call)

    def _client_silent(self) -> None:
        """Perhaps the app speaks first: dial it and watch both."""
        self._silent = True
        self._timer = None
        if self.whole is not None:
            if self._port.snapshot.forward_client_cert:  # what it will say has to be read
                self._timer = self._loop.later(SILENCE_TIMEOUT, self._silent_for_long)
            else:
                self._wire(None)  # the handler may, and nothing is lost by not reading what this client will say
            return
        self._dial(self._app_dialled)

    def _silent_for_long(self) -> None:
        self._wire("silent-client")

    def _app_dialled(self, app: socket.socket) -> None:
        self._app = app
        self._loop.add(app.fileno(), self._app_ready, READ)

    def _app_ready(self, mask: int) -> None:
        """The app speaks, or ends, before the client: a wire, unless the client has spoken in this very moment."""
        del mask
        if self._lowat == 1 and _first_words(self._sock):
            self._client_ready(READ)
            return
        if self._lowat == 1 and is_greeting(_first_words(self._app)):
            self._port.server_first = True
        self._wire("server-first")

    # --- TLS --------------------------------------------------------------------------------------------------------

    def _hello(self, data: bytes) -> None:
        snapshot = self._port.snapshot
        if snapshot.tls == "never":
            self._wire("tls-on-clear-port")
            return
        if not snapshot.identity:
            self._wire("tls-without-certificate")
            return
        hello = client_hello.parse(data)
        if isinstance(hello, client_hello.Incomplete):
            self._wait_for(len(data), max(1, hello.needed))
            return
        if isinstance(hello, client_hello.NotTls):
            self._wire("not-a-client-hello")
            return
        self._stop_waiting()
        alpn = tuple(name.decode("latin-1") for name in hello.alpn)
        if hello.server_name is not None and not hello.server_name_reproducible:
            self._end_to_end(
                Failure(
                    ConditionType.SNI_UNSUPPORTED,
                    f"a client sent {hello.server_name[:64].decode('latin-1')!r} as its server name, which is no host "
                    "name (an address is none) and cannot be sent on: none of its requests is matched, "
                    f"{outcome(snapshot)}",
                )
            )
        elif hello.askable and self._asks_later():
            self._end_to_end(asks_later(snapshot))
        elif not hello.modern or not all(0 < len(name) < 256 and name.isascii() for name in alpn):
            self._wire("tls-version" if not hello.modern else "alpn-not-ascii")
        else:
            name = hello.server_name.decode("ascii") if hello.server_name is not None else None
            offer = Offer(data[: hello.size], hello.shape, name, alpn, hello.askable)
            self._bridge = Bridge(self, self._loop, self._port, self._reception, offer)
            self._bridge.begin()

    def _asks_later(self) -> bool:
        """Whether the app would ask this client for a certificate that only the client has."""
        return self._port.asks_later and self.whole is None and not presents(self._port.snapshot)

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

        self._cancel = self._reception.open_stream(Raw(self._endpoint), Leg(Role.HANDLER, whole), finished)

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
                self._reception.no_app(self._port, self._endpoint.host)
            self.abandon()

        self._cancel = self._reception.dial_app(self._endpoint, finished)

    def end_to_end(self, failure: Failure) -> None:
        """TLS between client and app, untouched; say why. What was dialled for the handshake is closed."""
        self._reception.gone(self._endpoint)
        self._end_to_end(failure)

    def _end_to_end(self, failure: Failure) -> None:
        self._reception.report(self._port, failure.type, failure.text)
        self._port.counters["tls_passed"] += 1
        self._wire(None)

    def _wire(self, anomaly: str | None) -> None:
        if self._port.snapshot.forward_client_cert:
            # The app believes what a request says about its client: nothing reaches it that was not looked at.
            self._port.counters["closed_unread"] += 1
            self.abandon()
            return
        relay = WireRelay(self.whole)
        relay.anomaly = anomaly
        self._relay(relay, "tcp")

    def _relay(self, relay: Relay, protocol: str) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._finish_judging(sock)
        relay = tapped(relay, self._port, self._reception.ledger)
        conduit = self._conduit(relay, protocol)
        conduit.attach(relay.client, PlainStream(sock), watched=True)
        app, self._app = self._app, None
        if app is not None:
            self._loop.remove(app.fileno())
            conduit.attach(relay.app, PlainStream(app), watched=False)
        self._start(conduit)

    def _finish_judging(self, sock: socket.socket) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if self._lowat != 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _conduit(self, relay: Relay, protocol: str) -> Conduit:
        return Conduit(
            self._loop,
            relay,
            courier=self._reception,
            port=self._port,
            endpoint=self._endpoint,
            protocol=protocol,
        )

    def _start(self, conduit: Conduit) -> None:
        self._reception.judged_away(self)
        self._reception.opened(conduit)
        try:
            conduit.begin()
        except Exception:
            conduit.abandon()  # the caller is not the conduit, and could not end it
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
        conduit = Conduit(
            self._loop,
            relay,
            courier=self._reception,
            port=self._port,
            endpoint=self._endpoint,
            protocol=protocol,
            tls=True,
            server_name=bridge.server_name or "",
            app_tls=bridge.redial,
        )
        app.before_close = lambda: bridge.remember(app)
        conduit.attach(relay.app, app, watched=False)
        conduit.attach(relay.client, client, watched=True)
        early = app.take_early()
        if early:
            relay.receive(relay.app, early)
        if words:
            relay.receive(relay.client, words)
        self._start(conduit)

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
        self._reception.gone(self._endpoint)
        self._reception.judged_away(self)


def _first_words(sock: socket.socket | None) -> bytes:
    """What a peer has said and nobody has read; b"" when that is nothing, or cannot be told."""
    try:
        return sock.recv(GREETING, socket.MSG_PEEK) if sock is not None else b""
    except OSError:
        return b""
