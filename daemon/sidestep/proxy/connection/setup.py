"""Sets up an accepted connection: one linear path from accept to relay.

    accept     `acceptor` hands the socket over
    classify   peek at the client's first bytes and ask `engine.classification`, until its verdict is not to wait
    establish  if the verdict is to open TLS: `establishment` finishes both handshakes and classifies what is inside
    relay      carry the verdict out: relay requests, relay bytes, pass the connection through, or close it

Whether a connection is passed through is decided in `engine.classification`; `_not_opened` asks it again when TLS could
not be established. Nothing here decides that.

States

    state         what can happen                                      next
    CLASSIFYING   first bytes, an end, a deadline, the app's data      RELAYED, ESTABLISHING, CLOSED
    ESTABLISHING  handshakes (see `establishment`)                     RELAYED, CLOSED
    RELAYED       the conductor owns both ends
    CLOSED        the client is reset, and the app

Invariants
  * No byte of the client is consumed before its TLS handshake begins or a relay owns it. Until then every verdict can
    still be to pass the connection through, untouched.
  * The client's socket is registered with the loop in every state. While the handshake with the app goes on, a break of
    the client ends the setup; its bytes are not looked at a second time.
  * Each wait has a deadline (`first_bytes`, `establishment`).
  * `host.setup_over` is called exactly once, after the setup has given away or reset both ends.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from sidestep.engine.classification import (
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
from sidestep.engine.mirror.capture_writer import CaptureFacts
from sidestep.engine.mirror.live_exchanges import Teller
from sidestep.engine.passthrough import WireRelay
from sidestep.engine.relay import Relay
from sidestep.model.condition import ConditionType
from sidestep.model.errors import PeerError
from sidestep.proxy.connection.app_connection import begin_dial
from sidestep.proxy.connection.captured import captured
from sidestep.proxy.connection.conductor import Conductor
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.ends import Ends
from sidestep.proxy.connection.establishment import Established, TlsEstablishment
from sidestep.proxy.connection.first_bytes import PeekedBytes
from sidestep.proxy.connection.host import AppTls
from sidestep.proxy.connection.inspection_counts import InspectionCounts
from sidestep.proxy.connection.inspection_records import ConnectionRecords
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.relay_choice import feed, global_rule, mirror_whole, relay_for
from sidestep.proxy.connection.setup_host import SetupHost
from sidestep.proxy.io.loop import BROKEN, Loop
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.io.task import Task
from sidestep.proxy.tls import failures
from sidestep.proxy.tls.credentials import presents_certificate
from sidestep.proxy.tls.failures import TlsFailure
from sidestep.proxy.tls.recorded import OpenedTls


class ConnectionSetup:
    """One accepted connection until it is relayed or closed."""

    def __init__(
        self, loop: Loop, sock: socket.socket, *, port: LivePort, endpoints: Endpoints, host: SetupHost
    ) -> None:
        self._loop = loop
        self._port = port
        self._endpoints = endpoints
        self._host = host
        self._ends = Ends(loop, sock)
        self._rule = global_rule(port, endpoints.client)
        """A global intercept: its handler stands where the app would."""
        self._tls: TlsEstablishment | None = None
        self._established: Established | None = None
        self._failure: TlsFailure | None = None
        self._records: ConnectionRecords | None = None
        """Who makes records of what inspection finds, if anybody reads them."""
        self._hello = b""
        """The ClientHello of a connection that was opened, until it is relayed."""
        self._task = Task(self._run(sock))

    def begin(self) -> None:
        """Begin. Raises OSError when the loop cannot take the socket; the setup is over then."""
        self._task.start()

    def abandon(self) -> None:
        """End it where it stands: reset the client, and the app. Does nothing when it is over."""
        self._task.cancel()

    async def _run(self, sock: socket.socket) -> None:
        relayed = False
        try:
            verdict = await self._open(sock, await self._classify(sock))
            relayed = self._carry_out(verdict)
        except PeerError:
            pass  # the client or the app is gone: nobody is left to be told
        finally:
            self._ends.reset()
            if not relayed:
                self._host.release_names(self._endpoints)
            self._host.setup_over(self)

    # --- classify ---------------------------------------------------------------------------------------------------

    async def _classify(self, sock: socket.socket) -> Verdict:
        """Wait for first bytes until they tell. Raises PeerError when the client breaks or the app is out of reach."""
        first = PeekedBytes(self._loop, sock, partial(begin_dial, self._host, self._port, self._endpoints))
        try:
            facts = self._facts()
            verdict = classify(facts, Event.ACCEPTED)
            data = b""
            while isinstance(verdict, Wait | AskApp):
                event, data = await first.next(verdict, len(data))
                if first.has_waited:
                    facts = self._facts()  # the port may have another snapshot
                verdict = classify(facts, event, data)
                if verdict.tls is not None:
                    self._port.server_first = False
                    self._host.observe_protocol(self._port, self._endpoints, tls=verdict.tls)
                if first.greeted:
                    self._port.server_first = True
            self._ends.app = first.take_app()
        finally:
            first.close()
        return verdict

    def _facts(self) -> PortFacts:
        port, snapshot, intercepted = self._port, self._port.snapshot, self._rule is not None
        return PortFacts(
            tls=snapshot.tls,
            has_certificate=bool(snapshot.identity),
            reads_requests=bool(snapshot.rules or snapshot.policies or snapshot.opens),
            global_intercept=intercepted,
            global_wiretap=bool(snapshot.global_taps or snapshot.captures),
            on_unreadable=port.on_unreadable,
            late_client_auth=port.late_client_auth and not intercepted and not presents_certificate(snapshot),
            server_first=port.server_first,
            detection_seconds=self._host.detection_timeout,
        )

    # --- establish --------------------------------------------------------------------------------------------------

    async def _open(self, sock: socket.socket, verdict: Verdict) -> Verdict:
        """Open what the verdict wants opened; the verdict on what is inside. Raises PeerError."""
        return await self._establish(sock, verdict) if isinstance(verdict, OpenTls) else verdict

    async def _establish(self, sock: socket.socket, verdict: OpenTls) -> Http | Pass | Close:
        """Establish TLS; the verdict on what is inside it, or on TLS that was not opened. Raises PeerError."""
        self._loop.rebind(sock.fileno(), self._client_broke, 0)
        self._tls = TlsEstablishment(
            self._loop,
            verdict.offer,
            port=self._port,
            endpoints=self._endpoints,
            host=self._host,
            global_rule=self._rule,
            answers=self._answers,
        )
        outcome = await self._tls.run(self._ends)
        self._rule = self._tls.global_rule
        if isinstance(outcome, TlsFailure):
            self._host.release_names(self._endpoints)  # the name of the dial that was closed
            self._failure = outcome
            return unreadable(self._port.on_unreadable, "not-opened", condition=outcome.type, tls=True)
        self._established = outcome
        self._hello = verdict.offer.hello
        return outcome.verdict

    def _answers(self, client: socket.socket) -> None:
        """The client's handshake is answered next: the app's has succeeded."""

    def _client_broke(self, mask: int) -> None:
        if mask & BROKEN:
            self.abandon()

    # --- carry out --------------------------------------------------------------------------------------------------

    def _carry_out(self, verdict: Verdict) -> bool:
        """Relay, pass through or close; return whether the connection is relayed."""
        match verdict:
            case Http():
                self._relay(self._http(verdict), self._alpn or verdict.protocol)
            case Unparsed():
                self._uninspected(verdict)
                self._relay(WireRelay(self._rule, at_once=True), "tcp")
            case Pass():
                self._report(verdict)
                self._uninspected(verdict)
                relay = WireRelay(self._rule if self._established is None else None)
                relay.anomaly = verdict.reason if verdict.condition is None else None
                self._relay(relay, "tcp")
            case _:
                if isinstance(verdict, Close):
                    self._report(verdict)
                    self._uninspected(verdict)
                self._port.counters["closed_unread"] += 1
                return False
        return True

    @property
    def _alpn(self) -> str | None:
        return self._established.alpn if self._established is not None else None

    def _http(self, verdict: Http) -> Relay:
        client, app = self._ends.client, self._ends.app
        stream = client if isinstance(client, TlsStream) else None
        records = self._records = self._recorder()
        if records is not None and stream is not None and isinstance(app, TlsStream) and self._tls is not None:
            opened = OpenedTls(stream, app, partial(self._tls.app_certificate, app))
            records.opened(opened, self._hello, self._host.hellos)
        return relay_for(
            verdict.protocol,
            self._port,
            self._host.ledger,
            stream,
            global_rule=self._rule,
            address=self._endpoints.client,
            server_name=self._server_name,
            records=records,
            teller=self._teller(records),
            captured=self._captured(),
            inspector=self._host.inspector,
            endpoints=self._endpoints,
        )

    def _captured(self) -> CaptureFacts | None:
        return captured(self._port, self._endpoints, self._ends.client, self._server_name)

    def _recorder(self) -> ConnectionRecords | None:
        """Return who makes records of the connection; None if there would be none, or nobody reads them."""
        port, queue = self._port, self._host.records
        if not port.listeners and (port.inspection is None or not queue.wanted):
            return None
        return ConnectionRecords(port, port.inspection, self._endpoints, queue)

    def _teller(self, records: ConnectionRecords | None) -> Callable[[], Teller]:
        """Return what gives `records`, or makes them once a session asks for some."""
        port, endpoints, queue = self._port, self._endpoints, self._host.records
        if records is None:
            return partial(ConnectionRecords, port, port.inspection, endpoints, queue)
        return lambda: records

    @property
    def _server_name(self) -> str:
        """The client's SNI, if its TLS was opened."""
        tls = self._tls
        return (tls.server_name or "") if tls is not None and self._established is not None else ""

    @property
    def _app_tls(self) -> AppTls | None:
        """How a further TLS stream to the app is made; None where the connection to the app is not opened TLS."""
        return self._tls.connect_again if self._tls is not None and self._established is not None else None

    def _why(self, verdict: Verdict) -> str:
        """Why nothing of a connection is inspected, in a word."""
        return verdict.reason if isinstance(verdict, Pass | Close) else "unparsed"

    def _uninspected(self, verdict: Verdict) -> None:
        """Count a connection of which nothing is inspected, on a port that has policies; tell sessions of it."""
        if self._port.inspection is not None or self._port.listeners:
            reason = self._why(verdict)
            self._records = self._recorder()
            observer = self._records or InspectionCounts(self._port.counters)
            observer.uninspected(reason, closed=isinstance(verdict, Close))

    def _report(self, verdict: Pass | Close) -> None:
        """Tell an operator about TLS that could otherwise be opened."""
        if verdict.condition is None:
            return
        failure = self._failure
        if verdict.condition is ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER and failure is None:
            failure = failures.late_client_auth(self._port.snapshot)
        elif failure is None:
            failure = failures.server_name_unsupported(self._port.snapshot, verdict.server_name)
        self._host.report(self._port, failure.type, failure.text)
        self._port.counters["tls_passed"] += 1

    def _relay(self, relay: Relay, protocol: str) -> None:
        """Hand both ends to a conductor, and begin."""
        mirror_whole(relay, self._port, self._host.ledger, self._captured())
        feed(relay, self._port, self._host.ledger, self._host.ids, self._endpoints)
        tls = self._tls if self._established is not None else None
        conductor = Conductor(
            self._loop,
            relay,
            host=self._host,
            port=self._port,
            endpoints=self._endpoints,
            protocol=protocol,
            tls=tls is not None,
            server_name=self._server_name,
            app_tls=self._app_tls,
            hello=self._host.hellos.keep(self._hello) if self._port.is_shown else None,
        )
        self._hello = b""
        client, app = self._ends.take_streams()
        self._host.opened(conductor)
        try:
            if client is not None:
                stream = client if self._records is None else self._records.watch(client)
                conductor.attach(relay.client, stream, watched=True)
            if app is not None:
                conductor.attach(relay.app, app, watched=False)
            if isinstance(app, TlsStream) and (early := app.take_early()):
                relay.receive(relay.app, early, self._loop.now)
            if self._established is not None and self._established.first_bytes:
                relay.mirror.client_data(self._established.first_bytes)
                relay.receive(relay.client, self._established.first_bytes, self._loop.now)
            conductor.begin()
        except Exception:
            conductor.abandon()  # nobody else could end it
            raise
