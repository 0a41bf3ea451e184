"""The response to a request as the web application firewall sees it: head, and the beginning of a body that is text.

One without a body that is text is judged by its head where a policy has rules of its own about responses, unless it is
a stream. The rules of CRS look at bodies only.

    before       its head has not come
    collecting   its body is being received, and kept up to the limit of the policies
    asked        enough of it is here, or all, and it is judged elsewhere (`inspection.asking`)
    over         there is a verdict, or none is waited for: nothing of it is judged

Where a policy enforces it may not be given to the client before it is over (`is_awaited`), unless it is too long, or
lasts too long. A response of which a part has gone can only be broken off; of one that has gone as a whole (`let_go`)
it is told that it would have been blocked.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from sidestep.engine.inspection.asking import Answer, Reason, Subject
from sidestep.engine.inspection.records import HitRecord
from sidestep.policy.accepted_policy import Outcome as PolicyOutcome
from sidestep.protocols.eve import FIREWALL
from sidestep.protocols.media_types import is_stream, is_text
from sidestep.protocols.waf_messages import MAX_FIELDS, MAX_HEAD, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.inspection.firewall import Exchange, Firewall, Host, Question
    from sidestep.policy.route import Fields

_ENCODING = b"content-encoding"
_EMPTY = 200
"""Responses with a lower status have no body (RFC 9110, 15.2) ..."""
_BODILESS = frozenset((204, 205, 304))
"""... nor have these."""


class _State(enum.Enum):
    BEFORE = enum.auto()
    COLLECTING = enum.auto()
    ASKED = enum.auto()
    OVER = enum.auto()


class NoFirewallResponse:
    """The response to a request of which no firewall judges it."""

    __slots__ = ()

    is_wanted = False
    """Its head has to be given."""
    is_collecting = False
    """Its body has to be given."""
    has_hit = False
    """A hit was told."""
    is_unavailable = False
    """The response is refused because there was no verdict."""
    held = 0
    """Bytes of the body that are kept."""

    @property
    def is_awaited(self) -> bool:
        """Whether the response may not go on, because it may still be blocked."""
        return False

    def call_when_answered(self, call: Callable[[], None]) -> None:
        """Have this called, through the gate, when there is an answer: by whoever holds the response until then."""

    def let_go(self) -> None:
        """Learn that the response has gone to the client as a whole."""

    def head(self, fields: Fields, status: int) -> None:
        """Take the head of the final response."""

    def add(self, data: bytes) -> None:
        """Take bytes of the decoded body."""

    def end(self) -> None:
        """Have judged what has come, once: there is no more of it that can be read."""

    def give_up(self) -> None:
        """Keep nothing any more. What was asked about already gets its answer."""

    def cancel(self) -> None:
        """Learn that the exchange is refused."""


NO_FIREWALL_RESPONSE = NoFirewallResponse()


class FirewallResponse(NoFirewallResponse):
    """See the module."""

    __slots__ = (
        "_body", "_call", "_exchange", "_fields", "_firewall", "_has_gone", "_host", "_question", "_state", "_status",
        "has_hit", "held", "is_collecting", "is_unavailable", "is_wanted",
    )  # fmt: skip

    def __init__(self, firewall: Firewall, exchange: Exchange, host: Host, question: Question) -> None:
        self._firewall = firewall
        self._exchange = exchange
        self._host = host
        self._question = question
        self._fields: Fields = ()
        self._status = 0
        self._body: list[bytes] = []
        self._call: Callable[[], None] | None = None
        self._has_gone = False
        self._on(_State.BEFORE)
        self.is_unavailable = False
        self.has_hit = False

    @property
    def is_awaited(self) -> bool:
        """As `NoFirewallResponse.is_awaited`."""
        return self._firewall.settings.enforces and self._state is not _State.OVER

    def call_when_answered(self, call: Callable[[], None]) -> None:
        """As `NoFirewallResponse.call_when_answered`."""
        self._call = call

    def let_go(self) -> None:
        """As `NoFirewallResponse.let_go`."""
        self._has_gone = True
        self._call = None

    def head(self, fields: Fields, status: int) -> None:
        """As `NoFirewallResponse.head`."""
        if not self.is_wanted:
            return
        self._on(_State.OVER)
        size = len(self._question.target) + sum(len(name) + len(value) for name, value in fields)
        if size > MAX_HEAD or len(fields) > MAX_FIELDS:
            self._host.observer.uninspected("waf-response-head", closed=False)
            return
        has_text = status >= _EMPTY and status not in _BODILESS and is_text(fields)
        by_head = self._firewall.settings.profile.custom_responses and not is_stream(fields)
        if has_text or (status >= _EMPTY and by_head):
            self._on(_State.COLLECTING)
            self._fields, self._status = fields, status
            if not has_text:
                self.end()

    def add(self, data: bytes) -> None:
        """As `NoFirewallResponse.add`."""
        if not self.is_collecting:
            return
        room = self._firewall.settings.body_bytes - self.held
        self._body.append(data[:room])
        self.held += min(len(data), room)
        if len(data) >= room:
            self.end()

    def end(self) -> None:
        """As `NoFirewallResponse.end`."""
        if not self.is_collecting:
            return
        question, firewall, body = self._question, self._firewall, b"".join(self._body)
        # It is decoded.
        fields = tuple(each for each in self._fields if each[0].replace(b"_", b"-") != _ENCODING)
        self._on(_State.ASKED)
        subject = Subject(
            firewall.settings.profile, question.method, question.target, question.version, fields, firewall.client,
            firewall.server, body, self._status,
        )  # fmt: skip
        firewall.ask(subject, seconds=firewall.settings.seconds, on_answer=self._answered)

    def give_up(self) -> None:
        """As `NoFirewallResponse.give_up`."""
        if self._state is not _State.ASKED:
            self._on(_State.OVER)

    def cancel(self) -> None:
        """As `NoFirewallResponse.cancel`."""
        self._on(_State.OVER)

    def _on(self, state: _State) -> None:
        self._state = state
        self.is_wanted = state is _State.BEFORE
        self.is_collecting = state is _State.COLLECTING
        self._body, self._fields = [], ()
        self.held = 0

    def _answered(self, answer: Answer) -> None:
        if self._state is not _State.ASKED:
            return
        self._on(_State.OVER)
        settings = self._firewall.settings
        if isinstance(answer, Reason):
            closes = settings.closes and not self._has_gone
            self._host.observer.uninspected(f"waf-{answer}", closed=closes)
            if closes:
                self.is_unavailable = True
                self._exchange.refuse(settings.closing)
        elif answer.outcome is Outcome.BLOCK:
            self._hit(" ".join(map(str, answer.rules)))
        if self._call is not None:
            self._host.firewall_answered(self._call)

    def _hit(self, found: str) -> None:
        """Tell what was found; refuse the response where a policy enforces, and not all of it has gone."""
        settings = self._firewall.settings
        blocks = settings.enforces and not self._has_gone
        outcome = PolicyOutcome.BLOCK if blocks else PolicyOutcome.ALERT
        hit = HitRecord(
            self._exchange.record(), settings.blocking, FIREWALL, outcome, not blocks, True, found, True, self._host.now
        )  # fmt: skip
        self._host.observer.hit(hit)
        self.has_hit = True
        if blocks:
            self._exchange.refuse(settings.blocking)
