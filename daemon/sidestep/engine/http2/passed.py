"""A request of HTTP/2 that was forwarded before the firewall was asked about it (`inspection.passed`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.head import Head, head_of
from sidestep.engine.inspection.firewall import Question
from sidestep.engine.inspection.passed import Passed
from sidestep.engine.inspection.sampling import number_of

if TYPE_CHECKING:
    from sidestep.engine.inspection.firewall import Firewall
    from sidestep.engine.inspection.gate import Gate
    from sidestep.protocols.hpack import Block

H2: Final = "h2"


class PassedHttp2(Passed):
    """See the module. `head` is valid, or the block of one; of that a `Head` is made as late as it is asked for."""

    __slots__ = ("_head",)

    def __init__(self, firewall: Firewall, gate: Gate, head: Head | Block, stream: int) -> None:
        super().__init__(firewall, gate, None if gate.sampling is None else number_of(stream), stream)
        self._head = head

    def question(self) -> Question:
        """As `Passed.question`."""
        head = self._head if isinstance(self._head, Head) else head_of(self._head)
        question = Question(H2, head.method, head.path, head.fields)
        return question.ahead() if head.is_grpc else question
