"""A request of HTTP/1 that was forwarded before the firewall was asked about it (`inspection.passed`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http1.samples import HTTP1, HTTP10
from sidestep.engine.inspection.asking import HeadSubject
from sidestep.engine.inspection.firewall import Question
from sidestep.engine.inspection.passed import Passed
from sidestep.model.errors import BugError
from sidestep.protocols.http1 import HTTP_1_0, parse_request
from sidestep.protocols.waf_messages import MAX_FIELDS, MAX_HEAD

if TYPE_CHECKING:
    from sidestep.engine.inspection.asking import Subject
    from sidestep.engine.inspection.firewall import Firewall
    from sidestep.engine.inspection.gate import Gate


class PassedHttp1(Passed):
    """See the module. `head` was found good, and is given to the inspector as it is."""

    __slots__ = ("_head",)

    def __init__(self, firewall: Firewall, gate: Gate, head: bytes) -> None:
        sampling = gate.sampling
        super().__init__(firewall, gate, None if sampling is None else sampling.number, 0)
        self._head = head

    def subject(self) -> Subject | HeadSubject | None:
        """As `Passed.subject`."""
        head, firewall = self._head, self._firewall
        if len(head) > MAX_HEAD or head.count(b"\n") > MAX_FIELDS:
            return super().subject()
        return HeadSubject(firewall.settings.profile, head, firewall.client, firewall.server)

    def question(self) -> Question:
        """As `Passed.question`."""
        parsed = parse_request(self._head)
        if isinstance(parsed, str):
            raise BugError(f"a request that was read is not readable: {parsed}")
        protocol = HTTP10 if parsed.flags & HTTP_1_0 else HTTP1
        return Question(protocol, parsed.method, parsed.target, parsed.fields)
