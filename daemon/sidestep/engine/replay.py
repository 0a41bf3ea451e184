"""Replays captured connections against inspection policies: TCP segments in, what each request would get out.

Each connection is given to the relay that would inspect it in a pod (`engine.http1`, `engine.http2`), with what both
ends said, in the order of the capture; nothing is written anywhere. So a replay says what a pod proxy says, also of
bodies, answers, thresholds and what cannot be read. Time is that of the capture. A firewall is asked as one in a pod
is, and its answers are given to a relay before it reads on.

The policies are compiled in Detect mode, because a refused request would leave the captured answer without a request.
A hit of a rule that enforces is told as what it is: a block. What was captured behind a block is judged as well.

Only clear text is judged. Selectors and ports of policies are not looked at: each connection is judged by all policies.
A capture is hostile: the connections that are followed, and the requests and bytes that wait, are bounded.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Final

import msgspec
from msgspec.structs import replace

from sidestep.engine.classification import PEEK, Event, Http, Pass, PortFacts, Wait, classify
from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.asking import Answer, Subject
from sidestep.engine.inspection.firewall import Firewall
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.inspection.judged import Judged
from sidestep.engine.inspection.records import ExchangeRecord, FileRecord, HitRecord, Observer
from sidestep.engine.inspection.samples import Sample
from sidestep.engine.leg import Leg
from sidestep.engine.relay import OnUnreadable, Relay
from sidestep.model.inspection import InspectionPolicy, Mode
from sidestep.policy.accepted_policy import Outcome, accept
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.route import Fields, SteeredPort
from sidestep.protocols.tcp_segments import Segment, address
from sidestep.protocols.tcp_streams import Connection, Data, End, Finished, Lost, Streams
from sidestep.protocols.tcp_streams import Event as StreamEvent
from sidestep.snapshots.waf import PortWaf

MAX_CONNECTIONS: Final = 4096
"""Connections that are followed at once; others are told as not inspected."""
MAX_WAITING: Final = 1 << 20
"""Bytes of one end that wait until the relay reads them."""
MAX_REQUESTS: Final = 16384
"""Requests of all connections that are kept for what their answers may add."""
MAX_TARGET: Final = 2048
"""Bytes of a request's target that are kept."""

TLS: Final = "tls"
MISSING: Final = "missing-from-the-capture"
CROWD: Final = "too-many-connections-at-once"
BEHIND: Final = "too-much-waits"

ABOUT_THE_CAPTURE: Final = frozenset((TLS, MISSING, CROWD, BEHIND))
"""Reasons that a pod proxy does not have."""

_CLEAR_PORT: Final = PortFacts(
    tls="probe",
    has_certificate=False,
    reads_requests=True,
    global_intercept=False,
    global_wiretap=False,
    on_unreadable=OnUnreadable.PASS,
    late_client_auth=False,
    server_first=False,
    detection_seconds=0.0,
)
_REASONS: Final = {"tls-without-certificate": TLS}


class Where(msgspec.Struct, frozen=True):
    """A connection of the capture, as text: `host:port` of both ends; `number` counts from 1."""

    number: int
    client: str
    server: str


@dataclass(slots=True)
class ReplayedRequest:
    """A request and the rules that apply to it or its answer; `number` counts from 1 in its connection.

    `at` is the time of its head in seconds, `target` as sent, cut to MAX_TARGET bytes.
    """

    where: Where
    number: int
    at: float
    protocol: str
    method: bytes
    target: bytes
    host: bytes
    hits: list[HitRecord] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Reasons why parts of it or of its answer were not inspected."""

    @property
    def outcome(self) -> Outcome:
        """The strictest outcome of all hits."""
        return max((hit.action for hit in self.hits), default=Outcome.PASS)


class NotInspected(msgspec.Struct, frozen=True):
    """Something of a connection that no rule has seen; `reason` is a stable word, as the metric's label."""

    where: Where
    at: float
    reason: str


Outcomes = Iterator[ReplayedRequest | NotInspected]


AskNow = Callable[[Subject], Answer]
"""Has a request judged, and waits for the answer."""


class Replay:
    """All connections of a capture. Raises ConfigurationError for policies that cannot be used together.

    `firewall` are the settings of those that have one, joined, and who judges requests by them.
    """

    def __init__(self, policies: Sequence[InspectionPolicy], firewall: tuple[PortWaf, AskNow] | None = None) -> None:
        self._firewall = None
        if firewall is not None:
            settings, ask = firewall
            self._firewall = msgspec.structs.replace(settings, enforces=False, closes=False), ask
        self.connections = 0
        """Connections whose data was seen."""
        self._enforcing = frozenset(each.display for each in policies if each.mode is Mode.ENFORCE)
        self._inspection = Inspection([accept(replace(each, mode=Mode.DETECT)) for each in policies])
        self._streams = Streams()
        self._followed: dict[int, _Followed] = {}
        self._left_out: set[int] = set()

    @property
    def midstream(self) -> int:
        """Segments with data whose connections began before the capture."""
        return self._streams.midstream

    def feed(self, segment: Segment, at: float) -> Outcomes:
        """What is known for certain after one more segment, captured at `at` seconds."""
        for event in self._streams.feed(segment):
            yield from self._take(event, at)

    def finish(self, at: float) -> Outcomes:
        """What is known when the capture has ended."""
        for event in self._streams.finish():
            yield from self._take(event, at)

    def _take(self, event: StreamEvent, at: float) -> Outcomes:
        number = event.connection.number
        followed = self._followed.get(number)
        if followed is None and number not in self._left_out and isinstance(event, (Data, Lost)):
            followed = self._follow(event.connection)
            if followed is None:
                yield NotInspected(_where(event.connection), at, CROWD)
        if followed is not None:
            followed.take(event, at)
            most = max(8, MAX_REQUESTS // len(self._followed))
            yield from followed.told(most)
        if not isinstance(event, (Data, Lost, Finished)):
            self._left_out.discard(number)
            if followed is not None:
                del self._followed[number]
                followed.is_over()
                yield from followed.told(0)

    def _follow(self, connection: Connection) -> _Followed | None:
        self.connections += 1
        if len(self._followed) >= MAX_CONNECTIONS:
            self._left_out.add(connection.number)
            return None
        followed = self._followed[connection.number] = _Followed(
            connection, self._inspection, self._enforcing, self._firewall
        )
        return followed


class _Followed:
    """One connection: classified by its client's first bytes, then relayed."""

    def __init__(
        self,
        connection: Connection,
        inspection: Inspection,
        enforcing: frozenset[str],
        firewall: tuple[PortWaf, AskNow] | None,
    ) -> None:
        self._answers: deque[Callable[[], None]] = deque()
        """Of the firewall, to be given out."""
        self._firewall = None
        if firewall is not None:
            settings, self._ask_now = firewall
            self._firewall = Firewall(settings, self._ask, _plain(connection.client), _plain(connection.server))
        self._where = _where(connection)
        self._facts = ConnectionFacts(ip_address(connection.client[0]))
        self._inspection = inspection
        self._notes = _Notes(self._where, enforcing)
        self._first = b""
        self._relay: Relay | None = None
        self._gate: Gate | None = None
        self._over = False
        """Nothing more of it is judged."""
        self._waiting_bytes = [0, 0]
        self._waiting: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        """What the relay does not read yet, of the client and of the app."""

    def told(self, most: int) -> Outcomes:
        """What was found and not told yet; of the requests all but the latest `most`."""
        return self._notes.told(most)

    def take(self, event: StreamEvent, at: float) -> None:
        """Take what an end said, or that it ended."""
        self._notes.now = at
        if self._over:
            return
        match event:
            case Data():
                self._data(event.data, at, from_client=event.from_client)
            case Lost():
                self._end(MISSING)
            case Finished() if self._relay is not None:
                self._pump(self._relay, at)
                leg = self._relay.client if event.from_client else self._relay.app
                self._relay.receive_eof(leg, at)
                self._settle(self._relay, at)
            case _:
                if self._relay is None and self._first:
                    self._end("incomplete-first-message")
                elif self._relay is None and self._waiting[1]:
                    self._end("server-first")

    def is_over(self) -> None:
        """Learn that nothing more of it was captured: what has come of unfinished exchanges is judged."""
        if self._gate is not None:
            self._gate.end()
            self._hand_out()

    def _ask(self, subject: Subject, *, seconds: float, on_answer: Callable[[Answer], None]) -> None:
        """As `firewall.Ask`: the answer is there at once, and given out once the relay has ended its turn."""
        del seconds
        self._answers.append(partial(on_answer, self._ask_now(subject)))

    def _hand_out(self) -> None:
        while self._answers:
            self._answers.popleft()()

    def _data(self, data: bytes, at: float, *, from_client: bool) -> None:
        if self._waiting_bytes[not from_client] + len(data) > MAX_WAITING:
            self._end(BEHIND)
            return
        self._waiting[not from_client].append(data)
        self._waiting_bytes[not from_client] += len(data)
        if self._relay is None and from_client:
            self._first = (self._first + data)[:PEEK]
            self._relay = self._classified()
        if self._relay is not None:
            self._pump(self._relay, at)

    def _classified(self) -> Relay | None:
        match classify(_CLEAR_PORT, Event.DATA, self._first):
            case Http(protocol=protocol):
                engine = Http2Relay if protocol == "h2" else Http1Relay
                gate = self._gate = _ReplayGate(self._inspection, self._facts, self._notes, self._firewall)
                return engine(SteeredPort(0), tls=False, gate=gate)
            case Wait():
                return None
            case Pass(reason=reason):
                self._end(_REASONS.get(reason, reason))
        return None

    def _end(self, reason: str) -> None:
        self._over = True
        self._relay = None
        self._notes.uninspected(reason, closed=False)

    def _pump(self, relay: Relay, at: float) -> None:
        """Give the relay what it reads."""
        if relay.deadline is not None and at >= relay.deadline:
            relay.expired(at)
            relay = self._settle(relay, at)
        progress = True
        while progress and not relay.done:
            progress = False
            for index, waiting in enumerate(self._waiting):
                leg = relay.app if index else relay.client
                if waiting and leg.open and relay.reads(leg):
                    progress = True
                    leg.active = at
                    data = waiting.popleft()
                    self._waiting_bytes[index] -= len(data)
                    relay.receive(leg, data, at)
                    relay = self._settle(relay, at)
        if relay.done:
            self._over = True

    def _settle(self, relay: Relay, at: float) -> Relay:
        """Do what a shell does whose peers take everything at once."""
        self._hand_out()
        while relay.opening:
            asked, relay.opening = relay.opening, []
            for leg in asked:
                leg.open = True
                relay.opened(leg, at)
        for leg in relay.legs:
            _written(leg)
        self._relay = relay.successor or relay
        return self._relay


def _written(leg: Leg) -> None:
    leg.out.clear()
    leg.queued = 0


class _Notes:
    """The requests of one connection, and what is told of them. The observer of the connection."""

    def __init__(self, where: Where, enforcing: frozenset[str]) -> None:
        self.now = 0.0
        self._where = where
        self._enforcing = enforcing
        self._count = 0
        self._requests: dict[int, ReplayedRequest] = {}
        self._found: list[NotInspected] = []

    def begin(self, protocol: str, method: bytes, target: bytes, host: bytes) -> ReplayedRequest:
        """Note a request."""
        self._count += 1
        cut = target[:MAX_TARGET], host[:MAX_TARGET]
        return self.of(ReplayedRequest(self._where, self._count, self.now, protocol, method, *cut))

    def of(self, request: ReplayedRequest) -> ReplayedRequest:
        """Where to note more of a request: in itself, or, once it was told, in a further telling of it."""
        if request.number not in self._requests:
            self._requests[request.number] = dataclasses.replace(request, hits=[], unread=[])
        return self._requests[request.number]

    def as_enforced(self, record: HitRecord) -> HitRecord:
        """A hit as it would be if its policy was not compiled in Detect mode."""
        if record.would_block and record.policy in self._enforcing:
            return replace(record, action=Outcome.BLOCK, would_block=False)
        return record

    def hit(self, record: HitRecord) -> None:
        """As Observer.hit; hits are told to the exchanges."""

    def sampled(self, sample: Sample) -> None:
        """As Observer.sampled; nothing is sampled."""

    def file(self, record: FileRecord) -> None:
        """As Observer.file; the same."""

    def answered(self, record: ExchangeRecord) -> None:
        """As Observer.answered; the same."""

    def uninspected(self, reason: str, *, closed: bool) -> None:
        """As Observer.uninspected."""
        del closed
        self._found.append(NotInspected(self._where, self.now, reason))

    def told(self, most: int) -> Outcomes:
        """Forget and return requests until `most` are left, and what was not inspected."""
        while len(self._requests) > most:
            yield self._requests.pop(next(iter(self._requests)))
        found, self._found = self._found, []
        yield from found


class _ReplayGate(Gate):
    """A gate that notes every request: no head is remembered or ruled out."""

    __slots__ = ("_notes",)

    def __init__(
        self, inspection: Inspection, facts: ConnectionFacts, notes: _Notes, firewall: Firewall | None
    ) -> None:
        super().__init__(inspection.connection(facts), notes, str, firewall=firewall)
        self._notes = notes

    @property
    def token(self) -> object:
        """As Gate.token."""
        return object()

    def is_clean(self, head: bytes) -> bool:
        """As Gate.is_clean."""
        del head
        return False

    @property
    def skimmed_for(self) -> None:
        """As Gate.skimmed_for."""
        return None

    def rules_out(self, head: bytes) -> bool:
        """As Gate.rules_out."""
        del head
        return False

    @property
    def asks(self) -> bool:
        """As Gate.asks."""
        return False

    def clears(self, target: bytes, fields: Fields, body: bytes = b"") -> bool:
        """As Gate.clears."""
        del target, fields, body
        return False

    def remember_clean(self, head: bytes) -> None:
        """As Gate.remember_clean."""

    def judge(
        self, protocol: str, method: bytes, target: bytes, fields: Fields, *, stream: int = 0, ends: bool = False
    ) -> Judged:
        """As Gate.judge, and never None: the relay keeps what it got, so that each head is judged once."""
        del ends
        host = next((value for name, value in fields if name == b"host"), b"")
        request = self._notes.begin(protocol, method, target, host)
        exchange = self.connection.request(method, target, fields, self.now)
        judged = Judged(
            _OneExchange(self, request, self._notes),
            exchange,
            protocol=protocol,
            stream=stream,
            method=method,
            target=target,
            fields=fields,
            firewall=self.firewall,
        )
        self.ask_ahead(judged, protocol, fields)
        return judged


class _OneExchange:
    """The gate as one exchange sees it, and its observer: what is told belongs to its request."""

    def __init__(self, gate: Gate, request: ReplayedRequest, notes: _Notes) -> None:
        self._gate = gate
        self._request = request
        self._notes = notes
        self.observer: Observer = self
        self.new_id: Callable[[], str] = lambda: str(request.number)
        self.limits = gate.limits
        self.memory = gate.memory
        self.closes = gate.closes
        self.unfinished = gate.unfinished
        self.closing_policy = ""

    @property
    def now(self) -> float:
        """As Gate.now."""
        return self._gate.now

    def firewall_answered(self, call: Callable[[], None]) -> None:
        """As Gate.firewall_answered; no request is held for it."""

    def hit(self, record: HitRecord) -> None:
        """As Observer.hit."""
        self._notes.of(self._request).hits.append(self._notes.as_enforced(record))

    def sampled(self, sample: Sample) -> None:
        """As Observer.sampled; nothing is sampled."""

    def file(self, record: FileRecord) -> None:
        """As Observer.file; the same."""

    def answered(self, record: ExchangeRecord) -> None:
        """As Observer.answered; the same."""

    def uninspected(self, reason: str, *, closed: bool) -> None:
        """As Observer.uninspected."""
        del closed
        self._notes.of(self._request).unread.append(reason)


def _plain(end: End) -> tuple[str, int]:
    return address(end[0]), end[1]


def _where(connection: Connection) -> Where:
    return Where(connection.number + 1, _end_text(connection.client), _end_text(connection.server))


def _end_text(end: End) -> str:
    host = address(end[0])
    return f"[{host}]:{end[1]}" if ":" in host else f"{host}:{end[1]}"
