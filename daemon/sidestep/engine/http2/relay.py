"""The HTTP/2 relay: frames of client and app pass, requests that a rule wants go to its handler.

Invariants; each part says more, and `connection` says how the parts fit together:

* **HPACK contexts.** Client to app: the client's encoder is decoded (`RequestDecoder`); the app's decoder sees the same
  bytes but while it has missed a block that changed the client's table: then blocks are written for its own (`ToApp`).
  App to client: never decoded; blocks of diverted streams are literals without indexing, so the client's table stays
  as the app believes it to be.
* **Owed table size updates.** Towards the app: those of blocks that the app did not get (`ToApp`). Towards the client:
  the smallest HEADER_TABLE_SIZE that the app acknowledged since its last block (`ToClient`). Each begins the next block
  of ours in that direction.
* **The client's true connection window, and the debt** (`ToClient`): window = the window in the app's eyes + the app's
  DATA that waits - debt.
* **Ids the app has seen**: all but the diverted ones (`Streams`); no frame on a diverted id ever reaches it. Its GOAWAY
  is raised to cover them.
* **What is buffered where**:
  - `FromClient`: an incomplete header block (<= `header_block` while transparent)
  - `FromApp`: an incomplete SETTINGS or frame header
  - `AppQueue`: the app's DATA beyond the window (<= `app_queue`, then the app is not read)
  - `Exchange`: what link or client has not taken (<= the window of its sender, and the connection's share of the memory
    budget, see `backpressure`)
  - `LinkPool`: requests that their handler cannot take yet
  - a leg's `out`: what the shell has not written (<= HIGH_WATER, then its sources are not read)
* **Time.** The connection ticks (`expired`) while something ends with time: back-pressure, waiting in a pool, rates.

While a connection is transparent (`state`), anything that cannot be read with certainty - and an app that does not
answer with SETTINGS - makes it a wire (raw relay), with every byte so far handed on as it came. A mixed connection ends
with GOAWAY then (RFC 9113 section 5.4.1). With `OnUnreadable.CLOSE` no connection becomes a wire. With a rewriter
(`engine.rewriting`) the connection is mixed from the client's preface on.

The mirror neither makes a connection mixed nor holds anything back: it is told what passes (`Http2Feed`).
"""

from __future__ import annotations

from collections.abc import Callable

from sidestep.engine.http2.app_connection import AppEvent, AppState
from sidestep.engine.http2.connection import Connection
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.inspection.judged import Judged
from sidestep.engine.leg import HIGH_WATER, Ending, Leg
from sidestep.engine.memory_budget import Budget
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.relay import OnUnreadable, Relay
from sidestep.engine.rewriting import Rewriter
from sidestep.model.errors import PeerError
from sidestep.policy.route import SteeredPort
from sidestep.protocols.http2 import (
    DEFAULT_LIMITS,
    TICK,
    ErrorCode,
    Http2Error,
    Http2Limits,
    goaway,
    read_settings,
    rst_stream,
)

CONTROL_SLACK = 4
"""Times HIGH_WATER that may wait for a client before it is not read: our control frames answer frames of its own."""


class Http2Relay(Relay):
    """One HTTP/2 connection; the surface is `Relay`'s.

    `tls` is whether the client's bytes were decrypted. `upgrade_settings` is the decoded HTTP2-Settings of a request
    that was answered with 101 (RFC 7540 section 3.2): stream 1 is open, half-closed by the client, and the app's;
    `predecessor` is the relay of that request. Raises Http2Error when the settings are out of range.
    """

    __slots__ = ("_app_asked", "_client_ended", "_closes", "_connection", "tls")

    def __init__(
        self,
        port: SteeredPort,
        *,
        tls: bool,
        limits: Http2Limits = DEFAULT_LIMITS,
        upgrade_settings: bytes | None = None,
        predecessor: Relay | None = None,
        mirror: Mirror | None = None,
        budget: Budget | None = None,
        on_unreadable: OnUnreadable = OnUnreadable.PASS,
        rewriter: Rewriter | None = None,
        gate: Gate | None = None,
    ) -> None:
        upgraded = None if upgrade_settings is None else read_settings(upgrade_settings)
        super().__init__(mirror)
        if predecessor is not None:
            self.take_over(predecessor)
            self.protocol = "h2"
        self.tls = tls
        self._app_asked = False
        self._client_ended = False
        self._closes = on_unreadable is OnUnreadable.CLOSE or (gate is not None and gate.closes)
        self.gate = gate
        self._connection = Connection(self, port, limits, budget or Budget(), rewriter, gate)
        if upgraded is not None:
            self._connection.upgraded(upgraded)

    def adopt(self, judged: Judged) -> None:
        """Have the answer on stream 1 inspected: its request came over HTTP/1."""
        if self._connection.inspection is not None:
            self._connection.inspection.adopt(1, judged)

    # --- what the shell calls ---------------------------------------------------------------------------------------

    def receive(self, leg: Leg, data: bytes, now: float) -> None:
        """Take bytes from a leg."""
        self.now = now
        if self.joined is not None:
            self._other(leg).write(data)
            return
        if self.done or leg.ending > Ending.FINISH:
            return
        connection = self._connection
        try:
            if leg is self.client:
                if not self._app_asked:
                    self._ask_for_app()
                connection.from_client.receive(data)
            elif leg is self.app:
                connection.from_client.idle.level = 0
                if connection.app_responses is not None:
                    connection.app_responses.receive(data)
                if connection.inspected_responses is not None:
                    connection.inspected_responses.receive(data)
                connection.from_app.receive(data)
                if connection.from_client.waits:
                    connection.from_client.resume()
            else:
                self._receive_from_link(leg, data)
        except PeerError as error:
            self._fail(error)
        streams = connection.state.streams
        if connection.state.mixed:
            if not self._rests:
                self._advance()
            self.drain = len(streams.relayed) + len(streams.exchanges) > 1
        else:
            self.drain = len(streams.relayed) > 1

    def receive_eof(self, leg: Leg, now: float) -> None:
        """Take the end of a leg's bytes."""
        self.now = now
        if self.joined is not None:
            self._wire_eof(leg)
        elif self.done:
            return
        elif leg is self.client:
            self._client_ended = True
            if self._connection.inspection is not None:
                self._connection.inspection.client_ended()
            if not self._app_asked:
                self._ask_for_app()
            if not self._connection.from_client.waits:
                self._finish_app()
        elif leg is self.app:
            self._app_over(Ending.FINISH)
        else:
            self._link_over(leg, Ending.CLOSE)
        self._advance()

    def opened(self, leg: Leg, now: float) -> None:
        """Learn that a leg is connected."""
        self.now = now
        leg.open = True
        link = self._connection.diversion.links.get(leg)
        if link is not None:
            link.opened = True
            self._advance()

    def refused(self, leg: Leg, now: float) -> None:
        """Learn that a leg could not be connected."""
        self.now = now
        if not self.fall_back_to_app(leg):
            self.lost(leg, now)

    def lost(self, leg: Leg, now: float) -> None:
        """Learn that a leg broke."""
        self.now = now
        if self.joined is not None:
            for each in self.joined:
                each.end(Ending.ABORT)
            self.done = True
        elif self.done:
            return
        elif leg is self.client:
            self._connection.diversion.cancel_all()
            self.client.end(Ending.ABORT)
            self.app.end(Ending.ABORT)
            self.done = True
        elif leg is self.app:
            self._app_over(Ending.ABORT)
            self.app.end(Ending.ABORT)
        else:
            self._link_over(leg, Ending.ABORT)
        self._advance()

    def expired(self, now: float) -> None:
        """Learn that `deadline` has passed: a tick."""
        self.now = now
        connection = self._connection
        connection.from_client.idle.tick()
        connection.diversion.tick()
        self.deadline = now + TICK if self._wants_time else None
        self._advance()

    def answered(self, call: Callable[[], None], now: float) -> None:
        """As `Relay.answered`."""
        if not self.done and self.joined is None:
            super().answered(call, now)
            self._advance()

    @property
    def _rests(self) -> bool:
        """Whether `_advance` would do nothing, as after most reads of a mixed connection (measured: 1.5 µs less)."""
        connection = self._connection
        return (
            connection.diversion.rests
            and (self.deadline is not None or not self._wants_time)
            and not self._client_ended
            and not connection.app.has_ended
        )

    @property
    def _wants_time(self) -> bool:
        """Whether ticks are needed."""
        connection = self._connection
        if not connection.state.mixed or self.done:
            return False
        return connection.from_client.idle.wants_time or connection.diversion.wants_time

    def drained(self, leg: Leg, now: float) -> None:
        """Learn that `leg.out` was written after it had been congested."""
        self.now = now
        if self._connection.state.mixed and leg not in (self.client, self.app):
            self._advance()

    def reads(self, leg: Leg) -> bool:
        """Whether the shell should read from this leg now."""
        if self.joined is not None:
            return self._other(leg).queued <= HIGH_WATER
        if leg is self.client:
            connection = self._connection
            waits = (
                connection.from_client.waits or connection.settings.app_owes or bool(connection.diversion.backpressure)
            )
            owed = leg.queued + connection.to_client.waiting
            return not waits and self.app.queued <= HIGH_WATER and owed <= CONTROL_SLACK * HIGH_WATER
        if self.client.queued > HIGH_WATER:
            return False
        if leg is self.app:
            connection = self._connection
            return (
                connection.to_client.queue.size <= connection.state.limits.app_queue
                and not connection.settings.client_owes
            )
        return leg.queued <= HIGH_WATER and self._connection.diversion.reads(leg)

    def close_idle(self) -> None:
        """End an idle connection; GOAWAY tells the client which requests nobody has seen (RFC 9113 section 6.8)."""
        connection = self._connection
        if connection.app.state in (AppState.OPEN, AppState.RETIRED):
            connection.to_client.control(goaway(connection.state.streams.highest, ErrorCode.NO_ERROR))
        super().close_idle()

    def farewell(self) -> None:
        """Learn that the connection is over, or moved by the shell itself."""
        self._connection.feed.cut_all()
        super().farewell()

    @property
    def idle(self) -> bool:
        """Whether no stream is open."""
        streams = self._connection.state.streams
        return self.joined is None and not streams.relayed and not streams.exchanges

    @property
    def is_orphaned(self) -> bool:
        """Whether the connection is idle and the app, whose timeouts end idle ones, has no part in it."""
        return self._connection.app.state is AppState.RETIRED and self.idle

    # --- endings ----------------------------------------------------------------------------------------------------

    def _ask_for_app(self) -> None:
        self._app_asked = True
        if not self.app.open:
            self.opening.append(self.app)

    def _advance(self) -> None:
        """After every event: write what can be written, and end what is over."""
        connection = self._connection
        if self.done or self.joined is not None:
            return
        if connection.state.mixed:
            try:
                connection.diversion.pump()
            except PeerError as error:
                self._fail(error)
                return
            if self.deadline is None and self._wants_time:
                self.deadline = self.now + TICK
        streams = connection.state.streams
        self.drain = len(streams.relayed) + len(streams.exchanges) > 1
        if self._client_ended and not connection.from_client.waits:
            self._finish_app()
        app = connection.app
        is_retired = app.state is AppState.RETIRED
        if not app.has_ended or (is_retired and (streams.exchanges or not self._client_ended)):
            return
        if streams.exchanges and not self._client_ended and not self.client.ending:
            return
        if connection.to_client.queue and not self._client_ended:
            return
        connection.diversion.cancel_all()
        if connection.state.mixed:
            self.client.end(Ending.CLOSE)
            self.app.end(Ending.CLOSE)
            self.done = True
        else:
            self.client.end(Ending.FINISH)
            self.done = self._client_ended

    def _finish_app(self) -> None:
        """Finish sending to the app: the client has."""
        connection = self._connection
        if not self.app.ending:
            if not connection.state.mixed:
                connection.to_app.write(connection.from_client.pending)
            self.app.end(Ending.FINISH)

    def _app_over(self, ending: Ending) -> None:
        """Learn that the app has finished sending (FINISH) or is lost (ABORT)."""
        connection = self._connection
        if connection.app.has_ended:
            return
        if connection.app.only_looks_idle:
            self._retire_app()
            return
        connection.app.on(AppEvent.ENDED)
        to_client = connection.to_client
        if not connection.state.mixed:
            connection.to_client.pass_on(connection.from_app.pending, middle=False)
        if connection.from_client.waits and ending is Ending.FINISH:
            self._wire("h2-app-not-http2")
            self._wire_eof(self.app)
            return
        streams = connection.state.streams
        if streams.exchanges and not to_client.middle:
            # The diverted streams go on; the client learns that all others are over, and opens no new ones.
            last = max(streams.highest_diverted, 0)
            for stream in streams.relayed:
                if streams.goaway is None or stream <= streams.goaway:
                    to_client.control(rst_stream(stream, ErrorCode.INTERNAL_ERROR))
                connection.feed.cut(stream)
            streams.relayed.clear()
            if streams.goaway is None or streams.goaway > last:
                streams.goaway = last
                to_client.control(goaway(last, ErrorCode.NO_ERROR))
            return
        if connection.state.mixed and not streams.relayed and not to_client.middle:
            # What the client is sending now has been seen by nobody: tell it so.
            if streams.goaway is None:
                to_client.control(goaway(streams.highest, ErrorCode.NO_ERROR))
            ending = Ending.FINISH
        connection.diversion.cancel_all()
        if ending is Ending.ABORT:
            self.client.end(Ending.ABORT)
            self.done = True

    def _retire_app(self) -> None:
        """End the app's connection, which only looks idle, unseen by the client."""
        try:
            self._connection.app.retire()
        except PeerError as error:
            self._fail(error)

    # --- links ------------------------------------------------------------------------------------------------------

    def _receive_from_link(self, leg: Leg, data: bytes) -> None:
        diversion = self._connection.diversion
        link = diversion.links.get(leg)
        if link is None:
            return
        try:
            link.receive(data)
        except PeerError as error:
            link.write(goaway(0, error.code or ErrorCode.PROTOCOL_ERROR))
            diversion.link_over(link, Ending.CLOSE)

    def _link_over(self, leg: Leg, ending: Ending) -> None:
        link = self._connection.diversion.links.get(leg)
        if link is not None:
            self._connection.diversion.link_over(link, ending)

    # --- errors and wires -------------------------------------------------------------------------------------------

    def _fail(self, error: PeerError) -> None:
        """Pass the connection through if it is transparent, else end it with GOAWAY: it cannot be read."""
        connection = self._connection
        self.anomaly = error.label if isinstance(error, Http2Error) else "h2-hpack"
        if not connection.state.mixed:
            self._wire(self.anomaly)
            return
        self.mirror.anomaly(self.anomaly)
        self._uninspected(self.anomaly, closed=True)
        if connection.to_client.middle:
            self.client.end(Ending.ABORT)
        else:
            code = error.code or ErrorCode.PROTOCOL_ERROR
            connection.to_client.control(goaway(connection.state.streams.highest, code, self.anomaly.encode()))
            self.client.end(Ending.CLOSE)
        connection.diversion.cancel_all()
        self.app.end(Ending.CLOSE)
        self.done = True

    @property
    def _retains(self) -> bool:
        """Whether the client's frames begin with a request that inspection refuses, or may: it goes nowhere."""
        inspection = self._connection.inspection
        return inspection is not None and bool(inspection.waiting)

    def _uninspected(self, reason: str, *, closed: bool) -> None:
        if self.gate is not None:
            self.gate.uninspected(reason, closed=closed)

    def _wire(self, reason: str) -> None:
        """Join client and app for good, or close."""
        connection = self._connection
        self.anomaly = reason
        self.mirror.anomaly(reason)
        self._uninspected(reason, closed=self._closes or self._retains)
        if self._closes or self._retains:
            connection.diversion.cancel_all()
            self.client.end(Ending.CLOSE)
            self.app.end(Ending.CLOSE)
            self.done = True
            return
        self.drain = False
        connection.feed.cut_all()
        connection.to_app.write(connection.from_client.pending)
        if not connection.app.has_ended:  # otherwise the client has these bytes already
            connection.to_client.pass_on(connection.from_app.pending, middle=False)
        self.joined = (self.client, self.app)
        if self._client_ended:
            self._wire_eof(self.client)

    def _other(self, leg: Leg) -> Leg:
        return self.app if leg is self.client else self.client

    def _wire_eof(self, leg: Leg) -> None:
        """Pass the end of one side of a wire on."""
        other = self._other(leg)
        other.end(Ending.FINISH)
        self.done = leg.ending != Ending.NONE and other.ending != Ending.NONE
