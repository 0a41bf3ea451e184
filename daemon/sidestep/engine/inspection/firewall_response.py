"""The response to a request as the web application firewall sees it: head, and the beginning of a body that is text.

    before       its head has not come
    collecting   its body is being received, and kept up to the limit of the policies
    over         it is judged elsewhere (`inspection.asking`), or is none that is judged, because it is no text

What is found is told, in whatever mode: no response waits for its verdict, and none is refused for it. The body is
judged as far as it is kept, once there is enough of it, or it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.inspection.asking import Answer, Reason, Subject
from sidestep.engine.inspection.records import HitRecord
from sidestep.policy.accepted_policy import Outcome as PolicyOutcome
from sidestep.protocols.eve import FIREWALL
from sidestep.protocols.media_types import is_text
from sidestep.protocols.waf_messages import MAX_FIELDS, MAX_HEAD, Outcome

if TYPE_CHECKING:
    from sidestep.engine.inspection.firewall import Exchange, Firewall, Host, Question
    from sidestep.policy.route import Fields

_ENCODING = b"content-encoding"
_EMPTY = 200
"""Responses with a lower status have no body (RFC 9110, 15.2) ..."""
_BODILESS = frozenset((204, 205, 304))
"""... nor have these."""


class NoFirewallResponse:
    """The response to a request of which no firewall judges it."""

    __slots__ = ()

    is_wanted = False
    """Its head has to be given."""
    is_collecting = False
    """Its body has to be given."""
    has_hit = False
    """A hit was told."""
    held = 0
    """Bytes of the body that are kept."""

    def head(self, fields: Fields, status: int) -> None:
        """Take the head of the final response."""

    def add(self, data: bytes) -> None:
        """Take bytes of the decoded body."""

    def end(self) -> None:
        """Have judged what has come, once: there is no more of it that can be read."""

    def give_up(self) -> None:
        """Keep nothing any more, and have nothing judged."""


NO_FIREWALL_RESPONSE = NoFirewallResponse()


class FirewallResponse(NoFirewallResponse):
    """See the module."""

    __slots__ = (
        "_body", "_exchange", "_fields", "_firewall", "_host", "_question", "_status", "has_hit", "held",
        "is_collecting", "is_wanted",
    )  # fmt: skip

    def __init__(self, firewall: Firewall, exchange: Exchange, host: Host, question: Question) -> None:
        self._firewall = firewall
        self._exchange = exchange
        self._host = host
        self._question = question
        self._fields: Fields = ()
        self._status = 0
        self._body: list[bytes] = []
        self.is_wanted = True
        self.is_collecting = False
        self.has_hit = False
        self.held = 0

    def head(self, fields: Fields, status: int) -> None:
        """As `NoFirewallResponse.head`."""
        if not self.is_wanted:
            return
        self.is_wanted = False
        size = len(self._question.target) + sum(len(name) + len(value) for name, value in fields)
        if size > MAX_HEAD or len(fields) > MAX_FIELDS:
            self._host.observer.uninspected("waf-response-head", closed=False)
        elif status >= _EMPTY and status not in _BODILESS and is_text(fields):
            self._fields, self._status = fields, status
            self.is_collecting = True

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
        self.give_up()
        subject = Subject(
            firewall.settings.profile, question.method, question.target, question.version, fields, firewall.client,
            firewall.server, body, self._status,
        )  # fmt: skip
        firewall.ask(subject, seconds=firewall.settings.seconds, on_answer=self._answered)

    def give_up(self) -> None:
        """As `NoFirewallResponse.give_up`."""
        self.is_wanted = self.is_collecting = False
        self._body, self._fields = [], ()
        self.held = 0

    def _answered(self, answer: Answer) -> None:
        if isinstance(answer, Reason):
            self._host.observer.uninspected(f"waf-{answer}", closed=False)
        elif answer.outcome is Outcome.BLOCK:
            found = " ".join(map(str, answer.rules))
            hit = HitRecord(
                self._exchange.record(), self._firewall.settings.blocking, FIREWALL, PolicyOutcome.ALERT, False, True,
                found, True, self._host.now,
            )  # fmt: skip
            self._host.observer.hit(hit)
            self.has_hit = True
