"""What the parts of an inspected HTTP/1 relay share: the gate, and where exchanges stand.

Each exchange to which a rule may apply is in one place at a time:

    waiting     its head was judged, and stands first in `ConnectionState.unread` until earlier answers are complete
    held        its head, and what came of its body, is kept until there is a verdict (`InspectedFromClient`)
    reading     it is forwarded, and its body is read on its way
    expected    the app has yet to answer, and the answer is to be judged: `answers`, in order, one for each pending
                answer in `ConnectionState.awaited` that has the flag INSPECTED. Of a request that passed it is the
                head: the exchange is made when there is something to judge in the answer
    diverted    the same of a handler: `DivertedRequest.judged`
    switched    the other side speaks WebSocket: its messages and the client's are judged (`websocket_wire`)

Invariants: `retains` is true while a request is waiting and refused, or held. Then the connection does not become a
wire, because a refused request would go with it; it ends instead.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from sidestep.engine.http1.inspected_answer import InspectedAnswer
from sidestep.engine.http1.passed import PassedHttp1
from sidestep.engine.http1.samples import HTTP1, SAMPLED, Http1Samples
from sidestep.engine.inspection.body import is_plain
from sidestep.engine.inspection.judged import Judged
from sidestep.model.errors import BugError, PeerError
from sidestep.policy.inspection_match import text_of
from sidestep.protocols.http1 import END_OF_HEAD, parse_request
from sidestep.protocols.http1_response_head import response_fields
from sidestep.protocols.websocket import negotiated

if TYPE_CHECKING:
    from sidestep.engine.inspection.gate import Gate
    from sidestep.engine.leg import Leg
    from sidestep.policy.inspection import InspectedConnection
    from sidestep.protocols.http1_response_head import ResponseHead
    from sidestep.protocols.websocket import Deflate

INSPECTED: Final = 1 << 17
"""Flag of a pending answer, beside those of `protocols.http1` and `feed`: it is judged before the client gets it."""


WEBSOCKET: Final = b"websocket"
"""The token of the protocol (RFC 6455 section 4.1)."""


class WebSocket(msgspec.Struct, frozen=True):
    """A WebSocket whose messages are judged, with what its ends agreed on for compression."""

    judged: Judged
    deflate: Deflate | None


@dataclass(slots=True)
class Asked:
    """A request that passed, to which no rule applies, but of which the answer is to be searched.

    `connection` has the policies that applied then, `number` counts the requests of the connection.
    """

    head: bytes
    connection: InspectedConnection
    number: int | None


class Timed(Protocol):
    """A relay: `deadline` is what the shell sets a timer for."""

    deadline: float | None


class Http1Inspection:
    """See the module. One per inspected connection."""

    __slots__ = (
        "_client", "_is_armed", "_kept", "_sizes", "answer", "answers", "behind", "gate", "last", "paused", "retains",
        "samples", "upgrading",
    )  # fmt: skip

    def __init__(self, client: Leg, gate: Gate) -> None:
        self._client = client
        self.gate = gate
        self.samples = None if gate.sampling is None else Http1Samples(gate, gate.sampling)
        """Counts requests, and tells some of them; None: nobody listens."""
        self.answers: deque[Judged | Asked] = deque()
        self._sizes: deque[int] = deque()
        """Bytes of the heads of their requests ..."""
        self._kept = 0
        """... and the sum."""
        self.answer: InspectedAnswer | None = None
        """The answer that is being read: the app's, of the first of `answers`, or a handler's."""
        self.paused: bytes | None = None
        """The answer is whole, and waits for its verdict: what was read of it last. Nothing is read of the app ..."""
        self.behind = b""
        """... of which this came in the same piece."""
        self.retains = False
        self.last: Judged | None = None
        """The exchange of the last request that was forwarded; None if no rule can apply to it."""
        self.upgrading: Judged | None = None
        """The exchange whose answer follows over HTTP/2, after an upgrade to h2c."""
        self._is_armed = False

    @property
    def kept(self) -> int:
        """Bytes of the heads of requests that are kept until they are answered."""
        return self._kept if self.samples is None else self._kept + self.samples.kept

    def tell_later(self, head: bytes) -> None:
        """Have the firewall told of a request that passes: this head, and nothing else (`Gate.tells_later`)."""
        firewall = self.gate.firewall
        if firewall is not None and firewall.pass_by is not None:
            firewall.pass_by(PassedHttp1(firewall, self.gate, head))

    def expect(self, judged: Judged | None, size: int) -> int:
        """The app is asked for the answer to this exchange: the flag of its pending answer, INSPECTED or 0.

        `size` are the bytes of the request's head.
        """
        if judged is None or not judged.reads_response:
            return 0
        self.answers.append(judged)
        self._sizes.append(size)
        self._kept += size
        return INSPECTED

    def ask(self, data: bytes) -> int:
        """As `expect`, for a request that passes. `data` is its head, and maybe its body."""
        sampling = self.gate.sampling
        head = data[: data.index(END_OF_HEAD) + len(END_OF_HEAD)]
        self.answers.append(Asked(head, self.gate.connection, None if sampling is None else sampling.number))
        self._sizes.append(len(head))
        self._kept += len(head)
        return INSPECTED

    def clears(self, response: ResponseHead, data: bytes, end: int) -> bool:
        """Whether nothing is found in the first answer, which is `data`, whole; its head ends at `end`.

        False when that is not certain. Hot path: heads that come again are searched once.
        """
        asked = self.answers[0]
        if not isinstance(asked, Asked):
            return False
        connection = asked.connection
        sets = connection.answer_sets
        if response.cleared is None or response.cleared is not connection.asked:
            fields = response_fields(data[:end])
            text = text_of(fields)
            if not is_plain(fields) or any(each.find(text) for each in sets):
                return False
            response.cleared = connection.asked
        body = data[end:]
        return all(each.clears(body) for each in sets)

    def first(self) -> Judged:
        """The first exchange of `answers`."""
        first = self.answers[0]
        if isinstance(first, Asked):
            first = self.answers[0] = self._judged(first)
        return first

    def _judged(self, asked: Asked) -> Judged:
        gate = self.gate
        parsed = parse_request(asked.head)
        if isinstance(parsed, str):
            raise BugError(f"a request that was read is not readable: {parsed}")
        method, target, fields = parsed.method, parsed.target, parsed.fields
        exchange = asked.connection.request(method, target, fields, gate.now)
        judged = Judged(
            gate, exchange, protocol=HTTP1, stream=0, method=method, target=target, fields=fields, number=asked.number
        )
        judged.request_end()
        if self.samples is not None:
            self.samples.judge(judged, asked.number)
        return judged

    def begin(self, judged: Judged) -> InspectedAnswer:
        """An answer to this exchange begins."""
        answer = self.answer = InspectedAnswer(self._client, judged, self.gate.limits)
        return answer

    def answered(self) -> None:
        """The first of `answers` is complete."""
        self.answers.popleft()
        self._kept -= self._sizes.popleft()
        self.answer = None

    def passed(self, flags: int) -> None:
        """An answer of these flags passed, whole."""
        if flags & INSPECTED:
            self.answered()
        if flags & SAMPLED and self.samples is not None:
            self.samples.answered()

    def switched(self, protocol: bytes, head: bytes) -> WebSocket | str | None:
        """What becomes of what follows after an answer of this head has switched to a protocol (b"" after CONNECT).

        The messages of a WebSocket belong to the exchange that began it. None: no rule would look at them. A text says
        why what follows is not inspected: any other protocol may carry requests, and extensions that are not known may
        change what frames mean.
        """
        if protocol != WEBSOCKET:
            return "h1-upgrade" if protocol else "h1-connect"
        judged = self.last
        if judged is None or not (judged.reads_request_messages or judged.reads_response_messages):
            return None
        values = [value for name, value in response_fields(head) if name == b"sec-websocket-extensions"]
        try:
            return WebSocket(judged, negotiated(values))
        except PeerError:
            return "h1-websocket-extension"

    def forget(self) -> None:
        """No answer is judged any more, and nothing of what is held goes to the client."""
        self.answer = self.paused = None
        self.behind = b""
        self.answers.clear()
        self._sizes.clear()
        self._kept = 0

    def release(self) -> None:
        """The same, but what is held of an answer goes to the client: the connection becomes a wire.

        What is unfinished is read no further.
        """
        self.gate.break_off(goes_on=True)
        if self.answer is not None:
            self.answer.release()
        if self.behind:
            self._client.write(self.behind)
        self.forget()

    def arm(self, relay: Timed) -> None:
        """See that the relay's deadline is not later than that of the answer that is held."""
        deadline = None if self.answer is None else self.answer.deadline
        if deadline is not None and (relay.deadline is None or deadline < relay.deadline):
            relay.deadline = deadline
            self._is_armed = True

    def expired(self) -> bool:
        """Whether the relay's deadline was that of an answer, which is released now if it is still held."""
        was_armed, self._is_armed = self._is_armed, False
        if was_armed and self.answer is not None and self.answer.deadline is not None:
            self.answer.release()
        return was_armed
