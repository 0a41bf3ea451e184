"""A request as the web application firewall sees it: head and decoded body, kept until they can be asked about.

    collecting   the request is being received; its body is kept, up to the limit of the policies
    asked        it was whole, and is judged elsewhere (`inspection.asking`)
    over         there is a verdict, or none is waited for: the request exceeds a limit, or was broken off

Only a request that is kept whole is judged, so whatever keeps one from being received whole within the bounds of the
relay (its size, its time, an encoding that cannot be read) counts as a limit that it exceeds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from sidestep.engine.inspection.asking import Answer, HeadSubject, Reason, Subject
from sidestep.engine.inspection.records import HitRecord
from sidestep.policy.accepted_policy import Outcome as PolicyOutcome
from sidestep.protocols.eve import FIREWALL
from sidestep.protocols.waf_messages import MAX_FIELDS, MAX_HEAD, Outcome

if TYPE_CHECKING:
    from sidestep.engine.inspection.records import ExchangeRecord, Observer
    from sidestep.policy.route import Fields
    from sidestep.protocols.waf_messages import Verdict
    from sidestep.snapshots.waf import PortWaf

OVER_LIMIT: Final = "over-limit"
"""What is told instead of ids of rules where a request is refused because it exceeds a limit."""
_VERSIONS: Final = {"http/1": "1.1", "http/1.0": "1.0", "h2": "2"}
"""As ModSecurity's REQUEST_PROTOCOL has them, by the name of the relay's protocol."""
_ENCODING: Final = b"content-encoding"
_OF_MESSAGES: Final = re.compile(
    rb"content-length: [0-9]{1,20}|content-type: application/grpc(?:-web)?(?:\+[A-Za-z0-9.-]{1,64})?"
).fullmatch
"""A field of a head that is judged alone, and that rules would refuse without the body which it describes."""


class Ask(Protocol):
    """Has a request judged within so many seconds. `on_answer` is called once, and not before this returns."""

    def __call__(self, subject: Subject, *, seconds: float, on_answer: Callable[[Answer], None]) -> None:
        """See the class."""


class Forwarded(Protocol):
    """A request that was forwarded before anybody is asked about it (`passed`)."""

    @property
    def settings(self) -> PortWaf:
        """Those of the port when it passed."""

    def subject(self) -> Subject | HeadSubject | None:
        """What is asked; None if nothing is."""

    def answered(self, answer: Answer) -> None:
        """Tell what was found, or that nobody has judged it."""


class Firewall(msgspec.Struct, frozen=True):
    """What a connection needs to have its requests judged: settings of its port, who is asked, and its addresses.

    `pass_by` takes requests that are forwarded first; without it none are.
    """

    settings: PortWaf
    ask: Ask
    client: tuple[str, int]
    server: tuple[str, int]
    pass_by: Callable[[Forwarded], None] | None = None

    @property
    def is_told_later(self) -> bool:
        """Whether requests without a body are forwarded before anybody is asked about them (`passed`)."""
        settings = self.settings
        return self.pass_by is not None and not (settings.enforces or settings.closes or settings.profile.responses)


class _State(enum.Enum):
    COLLECTING = enum.auto()
    ASKED = enum.auto()
    OVER = enum.auto()


class Exchange(Protocol):
    """The exchange that the request belongs to."""

    wants_answer: bool
    """A hit was told before there was an answer."""

    def record(self) -> ExchangeRecord:
        """What is known of it."""

    def refuse(self, policy: str) -> None:
        """Refuse it, for this policy."""


class Host(Protocol):
    """What is needed of the gate."""

    observer: Observer

    @property
    def now(self) -> float:
        """The time of the input that is being handled (monotonic seconds)."""

    def firewall_answered(self, call: Callable[[], None]) -> None:
        """Have the relay called, and what it decides carried out."""


class Question(msgspec.Struct, frozen=True):
    """The head of a request: `protocol` as in `records.ExchangeRecord`, fields as in `waf_messages.Question`."""

    protocol: str
    method: bytes
    target: bytes
    fields: Fields

    @property
    def version(self) -> str:
        """As ModSecurity's REQUEST_PROTOCOL has it."""
        return _VERSIONS[self.protocol]

    def ahead(self) -> Question:
        """The same as that of a GET: what follows are messages of a WebSocket or of gRPC.

        Fields that describe a body are left out if they say nothing else.
        """
        fields = [each for each in self.fields if _OF_MESSAGES(b": ".join(each)) is None]
        return Question(self.protocol, b"GET", self.target, fields)


class NoFirewall:
    """The request of an exchange that no firewall judges: nothing is kept, and nothing waited for."""

    __slots__ = ()

    is_collecting = False
    """The request's body has to be given."""
    is_unavailable = False
    """The request is refused because there was no verdict."""
    has_hit = False
    """A hit was told."""
    held = 0
    """Bytes of the body that are kept."""

    @property
    def is_awaited(self) -> bool:
        """Whether the request may not go on, because it may still be blocked."""
        return False

    def begin(self) -> None:
        """Look whether the head is one that an inspector takes."""

    def add(self, data: bytes) -> None:
        """Take bytes of the decoded body."""

    def exceed(self) -> None:
        """Learn that the request cannot be asked about as a whole."""

    def request_end(self, *, is_whole: bool) -> None:
        """Have the request judged if it is whole, once."""

    def ask_ahead(self) -> None:
        """Have the head alone judged, as that of a GET: what follows are messages of a WebSocket or of gRPC.

        Fields that describe a body are left out if they say nothing else.
        """

    def call_when_answered(self, call: Callable[[], None]) -> None:
        """Have this called, through the gate, when there is an answer: by whoever holds the request until then."""


NO_FIREWALL: Final = NoFirewall()


class FirewallRequest(NoFirewall):
    """See the module."""

    __slots__ = (
        "_body", "_call", "_exchange", "_firewall", "_host", "_question", "_state", "has_hit", "held", "is_collecting",
        "is_unavailable",
    )  # fmt: skip

    def __init__(self, firewall: Firewall, exchange: Exchange, host: Host, question: Question) -> None:
        self._firewall = firewall
        self._exchange = exchange
        self._host = host
        self._question = question
        self._body: list[bytes] = []
        self._call: Callable[[], None] | None = None
        self._state = _State.COLLECTING
        self.is_collecting = True
        self.is_unavailable = False
        self.has_hit = False
        self.held = 0

    @property
    def is_awaited(self) -> bool:
        """As `NoFirewall.is_awaited`."""
        return self._firewall.settings.enforces and self._state is not _State.OVER

    def begin(self) -> None:
        """As `NoFirewall.begin`."""
        question = self._question
        size = (
            len(question.method) + len(question.target) + sum(len(name) + len(value) for name, value in question.fields)
        )
        if size > MAX_HEAD or len(question.fields) > MAX_FIELDS:
            self.exceed()

    def add(self, data: bytes) -> None:
        """As `NoFirewall.add`."""
        if not self.is_collecting:
            return
        self.held += len(data)
        if self.held > self._firewall.settings.body_bytes:
            self.exceed()
        else:
            self._body.append(data)

    def exceed(self) -> None:
        """As `NoFirewall.exceed`."""
        if self.is_collecting:
            self._on(_State.OVER)
            self._over_limit()

    def request_end(self, *, is_whole: bool) -> None:
        """As `NoFirewall.request_end`."""
        if is_whole:
            self._ask(self._question.method, self._question.fields)
        elif self.is_collecting:
            self._on(_State.OVER)

    def ask_ahead(self) -> None:
        """As `NoFirewall.ask_ahead`."""
        question = self._question.ahead()
        self._ask(question.method, question.fields)

    def call_when_answered(self, call: Callable[[], None]) -> None:
        """As `NoFirewall.call_when_answered`."""
        self._call = call

    # --- inside -----------------------------------------------------------------------------------------------------

    def _ask(self, method: bytes, fields: Fields) -> None:
        if not self.is_collecting:
            return
        question, firewall = self._question, self._firewall
        body = b"".join(self._body)
        if body:
            # It is decoded. CRS refuses the field, because it could not look into what is encoded.
            fields = [each for each in fields if each[0].replace(b"_", b"-") != _ENCODING]
        subject = Subject(
            firewall.settings.profile, method, question.target, question.version, tuple(fields),
            firewall.client, firewall.server, body,
        )  # fmt: skip
        self._on(_State.ASKED)
        firewall.ask(subject, seconds=firewall.settings.seconds, on_answer=self._answered)

    def _on(self, state: _State) -> None:
        self._state = state
        self.is_collecting = False
        self._body = []
        self.held = 0

    def _answered(self, answer: Answer) -> None:
        if self._state is not _State.ASKED:
            return
        self._on(_State.OVER)
        settings = self._firewall.settings
        if isinstance(answer, Reason):
            self._host.observer.uninspected(f"waf-{answer}", closed=settings.closes)
            if settings.closes:
                self.is_unavailable = True
                self._exchange.refuse(settings.closing)
        elif answer.outcome is Outcome.OVER_LIMIT:
            self._over_limit()
        elif answer.outcome is Outcome.BLOCK:
            self._hit(ids_of(answer))
        if self._call is not None:
            self._host.firewall_answered(self._call)

    def _over_limit(self) -> None:
        if self._firewall.settings.blocks_over_limit:
            self._hit(OVER_LIMIT)
        else:
            self._host.observer.uninspected(f"waf-{OVER_LIMIT}", closed=False)

    def _hit(self, found: str) -> None:
        """Tell what was found: ids of rules, or OVER_LIMIT; refuse the request where a policy enforces."""
        settings = self._firewall.settings
        record = self._exchange.record()
        self._exchange.wants_answer |= record.status is None
        self._host.observer.hit(hit_of(record, settings, found, at=self._host.now))
        self.has_hit = True
        if settings.enforces:
            self._exchange.refuse(settings.blocking)


def hit_of(record: ExchangeRecord, settings: PortWaf, found: str, *, at: float) -> HitRecord:
    """What is told of a request in which `found` was found: ids of rules, or OVER_LIMIT."""
    outcome = PolicyOutcome.BLOCK if settings.enforces else PolicyOutcome.ALERT
    return HitRecord(
        record, settings.blocking, FIREWALL, outcome, not settings.enforces, True, found, False, at
    )  # fmt: skip


def ids_of(verdict: Verdict) -> str:
    """The ids of its rules as they are told."""
    return " ".join(map(str, verdict.rules))
