"""Inspected relays around the shells of these tests: policies of a few words, and an observer that remembers."""

from __future__ import annotations

import itertools

from msgspec.structs import replace

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.inspection.firewall import Firewall
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.inspection.limits import LIMITS, InspectionLimits
from sidestep.engine.inspection.records import ExchangeRecord, FileRecord, HitRecord
from sidestep.engine.inspection.samples import Sample
from sidestep.engine.inspection.sampling import Sampling
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Direction, FailurePolicy, InspectionPolicy, Match, Mode, Pattern, Rule
from sidestep.policy.accepted_policy import accept
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.route import Route, SteeredPort
from tests.unit.engine.shell import Shell

DETECT = {"mode": Mode.DETECT}
ENFORCE = {"mode": Mode.ENFORCE, "failure_policy": FailurePolicy.IGNORE}
FAIL = {"mode": Mode.ENFORCE, "failure_policy": FailurePolicy.FAIL}
MODES = {"Detect": DETECT, "Enforce+Ignore": ENFORCE, "Enforce+Fail": FAIL}
SECRET = b"attack at dawn"

BLOCKED = b"sidestep: policy shop/p, id x1\n"


def path(value: str = "/admin", test: PathTest = PathTest.PREFIX) -> Match:
    return Match(Filter(paths=(PathCondition(test, value),)))


NO_ADMIN = Rule("no-admin", Action.BLOCK, match=path())
NO_SECRET = Rule("no-secret", Action.BLOCK, patterns=(Pattern(regex="attack at dawn"),))
NO_LEAK = Rule("no-leak", Action.BLOCK, Direction.RESPONSE, patterns=(Pattern(regex="attack at dawn"),))


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.records: list[HitRecord] = []
        self.exchanges: list[ExchangeRecord] = []
        self.answers: list[ExchangeRecord] = []
        self.files: list[FileRecord] = []
        self.reasons: list[tuple[str, bool]] = []

    def hit(self, record: HitRecord) -> None:
        self.records.append(record)

    def sampled(self, sample: Sample) -> None:
        protocol, method, target, host, *_ = sample.request()
        names = (b"content-type", b"location")
        answer = [(name, value) for name, value in zip(names, sample.answer, strict=True) if value]
        request = (method, target, host, [(b"host", host)])
        record = ExchangeRecord("", protocol, sample.number, sample.stream, *request, sample.status, answer)
        self.exchanges.append(replace(record, length=sample.length))

    def file(self, record: FileRecord) -> None:
        self.files.append(record)

    def answered(self, record: ExchangeRecord) -> None:
        self.answers.append(record)

    def uninspected(self, reason: str, *, closed: bool) -> None:
        self.reasons.append((reason, closed))

    @property
    def told(self) -> list[tuple[str, int, bool]]:
        return [(record.rule, int(record.action), record.would_block) for record in self.records]


def inspection(*rules: Rule, **policy) -> Inspection:
    return Inspection([accept(InspectionPolicy("p", "shop", rules=rules, **(policy or FAIL)))])


def gate(
    inspected: Inspection,
    recorder: Recorder,
    limits: InspectionLimits = LIMITS,
    sampling: Sampling | None = None,
    exempt: frozenset[tuple[bytes, bytes]] = frozenset(),
    firewall: Firewall | None = None,
    **facts,
) -> Gate:
    numbers = itertools.count(1)
    connection = inspected.connection(ConnectionFacts(**facts))
    return Gate(connection, recorder, lambda: f"x{next(numbers)}", limits, sampling, exempt=exempt, firewall=firewall)


class Inspected(Shell):
    """A shell around an inspected HTTP/1 relay; `seen` is its observer."""

    def __init__(
        self,
        *rules: Rule,
        route: Route | None = None,
        limits: InspectionLimits = LIMITS,
        inspected: Inspection | None = None,
        app_open: bool = True,
        auto: bool = True,
        tls: bool = True,
        sampling: Sampling | None = None,
        exempt: frozenset[tuple[bytes, bytes]] = frozenset(),
        **policy,
    ) -> None:
        self.seen = Recorder()
        self.gate = made = gate(inspected or inspection(*rules, **policy), self.seen, limits, sampling, exempt)
        port = SteeredPort(8443, route or Route())
        super().__init__(Http1Relay(port, tls=tls, gate=made), app_open=app_open, auto=auto)


def get(target: bytes = b"/", *fields: bytes) -> bytes:
    lines = (b"GET " + target + b" HTTP/1.1", b"Host: app.test", *fields)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(body: bytes, *fields: bytes, target: bytes = b"/p", chunk: int = 0) -> bytes:
    """A request with a body; `chunk`: in chunks of so many bytes, with a trailer."""
    framing = b"Transfer-Encoding: chunked" if chunk else b"Content-Length: %d" % len(body)
    payload = chunked(body, chunk) if chunk else body
    return get(target, framing, *fields).replace(b"GET", b"POST", 1) + payload


def chunked(body: bytes, size: int, trailer: bytes = b"X-Sum: 1\r\n") -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def answer(body: bytes = b"ok", *fields: bytes, status: bytes = b"200 OK", chunk: int = 0) -> bytes:
    framing = b"Transfer-Encoding: chunked" if chunk else b"Content-Length: %d" % len(body)
    payload = chunked(body, chunk) if chunk else body
    return b"\r\n".join((b"HTTP/1.1 " + status, framing, *fields)) + b"\r\n\r\n" + payload
