"""Requests that are forwarded first, and of which the firewall is told afterwards.

Where nothing can come of a verdict but an alert, a request without a body to which no rule applies is forwarded as
without a policy: it has no exchange (`judged`), and costs what noting its head costs (measured: 2 instead of 60
microseconds). The shell asks about many of them at once, some time later. Whatever is told of one is made when there is
something to tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sidestep.engine.inspection.asking import Answer, HeadSubject, Reason, Subject
from sidestep.engine.inspection.firewall import OVER_LIMIT, hit_of, ids_of
from sidestep.engine.inspection.records import ExchangeRecord
from sidestep.protocols.waf_messages import MAX_FIELDS, MAX_HEAD, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.inspection.firewall import Firewall, Question
    from sidestep.engine.inspection.records import Observer
    from sidestep.snapshots.waf import PortWaf


class Host(Protocol):
    """What is needed of the gate."""

    observer: Observer
    new_id: Callable[[], str]

    @property
    def now(self) -> float:
        """The time of the input that is being handled (monotonic seconds)."""


class Passed:
    """See the module. Subclasses know the head; `number` and `stream` as in `ExchangeRecord`."""

    __slots__ = ("_firewall", "_host", "_number", "_stream")

    def __init__(self, firewall: Firewall, host: Host, number: int | None, stream: int) -> None:
        self._firewall = firewall
        self._host = host
        self._number = number
        self._stream = stream

    def question(self) -> Question:
        """The head."""
        raise NotImplementedError

    @property
    def settings(self) -> PortWaf:
        """Those of the port when it passed."""
        return self._firewall.settings

    def subject(self) -> Subject | HeadSubject | None:
        """What is asked; None if the head exceeds what an inspector takes, which is told then."""
        question, firewall = self.question(), self._firewall
        size = (
            len(question.method) + len(question.target) + sum(len(name) + len(value) for name, value in question.fields)
        )
        if size > MAX_HEAD or len(question.fields) > MAX_FIELDS:
            self._over_limit()
            return None
        return Subject(
            firewall.settings.profile, question.method, question.target, question.version, tuple(question.fields),
            firewall.client, firewall.server,
        )  # fmt: skip

    def answered(self, answer: Answer) -> None:
        """Tell what was found, or that nobody has judged it."""
        if isinstance(answer, Reason):
            self._host.observer.uninspected(f"waf-{answer}", closed=False)
        elif answer.outcome is Outcome.OVER_LIMIT:
            self._over_limit()
        elif answer.outcome is Outcome.BLOCK:
            self._hit(ids_of(answer))

    def _over_limit(self) -> None:
        if self.settings.blocks_over_limit:
            self._hit(OVER_LIMIT)
        else:
            self._host.observer.uninspected(f"waf-{OVER_LIMIT}", closed=False)

    def _hit(self, found: str) -> None:
        question = self.question()
        host = next((value for name, value in question.fields if name == b"host"), b"")
        record = ExchangeRecord(
            self._host.new_id(), question.protocol, self._number, self._stream, question.method, question.target, host,
            question.fields,
        )  # fmt: skip
        self._host.observer.hit(hit_of(record, self.settings, found, at=self._host.now))
