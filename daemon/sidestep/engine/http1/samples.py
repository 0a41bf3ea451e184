"""The sampled requests of an HTTP/1 connection, from their heads to the ends of their answers.

The samples of requests that the app answers stand in the order of the requests, one for each pending answer in
`ConnectionState.awaited` that has the flag SAMPLED; that of a request which a handler answers stands in
`DivertedRequest.sample`.

Hot path: a request and an answer that pass as they are (`Http1Relay.passes`) cost one call each here, and nothing is
read of them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from sidestep.engine.inspection.samples import NOTHING, Sample, tell
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import CHUNKED, END_OF_HEAD, HEAD, parse_request

if TYPE_CHECKING:
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.inspection.samples import RequestTexts, SampledConnection
    from sidestep.engine.inspection.sampling import Sampling
    from sidestep.protocols.http1_response_head import ResponseHead
    from sidestep.protocols.http1_responses import ResponseReader

SAMPLED: Final = 1 << 18
"""Flag of a pending answer, beside those of `protocols.http1`, `feed` and `inspection`: its request is sampled."""
HTTP1: Final = "http/1"
HTTP10: Final = "http/1.0"
_OLD: Final = b"HTTP/1.0"
_ORIGIN_FORM: Final = 0x2F
"""The byte with which targets begin that are a path and query."""


class Http1Sample(Sample):
    """`asked` is the head of the request, as it came."""

    __slots__ = ()
    asked: bytes

    def __init__(self, number: int, head: bytes, judged: Judged | None) -> None:
        self.number = number
        self.stream = 0
        self.judged = judged
        self.status = self.length = None
        self.answer = NOTHING
        self.asked = head
        self.size = len(head)

    def request(self) -> RequestTexts:
        """See `Sample`. The head was found good before, so fields are only searched for (1.5 µs against 8)."""
        method, target, rest = self.asked.split(b" ", 2)
        low = rest.lower()
        host = agent = forwarded = referer = b""
        # As `_value`, without the calls, which were a third of the time.
        if (at := low.rfind(b"\nhost:") + 6) > 5:
            host = rest[at : rest.index(b"\r", at)].strip(b" \t")
        if (at := low.rfind(b"\nuser-agent:") + 12) > 11:
            agent = rest[at : rest.index(b"\r", at)].strip(b" \t")
        if (at := low.rfind(b"\nx-forwarded-for:") + 17) > 16:
            forwarded = rest[at : rest.index(b"\r", at)].strip(b" \t")
        if (at := low.rfind(b"\nreferer:")) >= 0:
            referer = _value(rest, at + 9)
        if target[0] != _ORIGIN_FORM:
            parsed = parse_request(self.asked)
            if not isinstance(parsed, str):
                target, host = parsed.target, parsed.authority
        return HTTP10 if rest.startswith(_OLD) else HTTP1, method, target, host, agent, forwarded, referer

    def answers(self, head: bytes, response: ResponseHead, length: int | None) -> None:
        """Note the final head of the answer, and the length of the body that follows (CHUNKED: not known yet)."""
        shown = response.shown
        if shown is None:
            shown = response.shown = _shown(head)
        self.answer = shown
        self.size = len(self.asked) + len(shown[0]) + len(shown[1])
        self.status = response.status
        self.length = length

    def follow(self, reader: ResponseReader, flags: int) -> bool:
        """Note what was read of the answer; `flags` are those of the request. Returns whether the answer is over."""
        event, response = reader.event, reader.response
        if response is None:
            return False
        if event == messages.FINAL:
            length = 0 if flags & HEAD else response.body
            self.answers(reader.head, response, None if length < CHUNKED else length)
        elif event == messages.SWITCH:
            self.answers(reader.head, response, None)
            return True
        elif event == messages.COMPLETE:
            if self.length == CHUNKED:
                self.length = reader.chunked_size
            return True
        return False


class Http1Samples:
    """See the module."""

    __slots__ = ("_diverted", "_gate", "_pending", "_sampling", "kept")

    def __init__(self, gate: SampledConnection, sampling: Sampling) -> None:
        self._gate = gate
        self._sampling = sampling
        self._pending: deque[Http1Sample] = deque()
        self._diverted: Http1Sample | None = None
        self.kept = 0
        """Bytes of the heads of pending requests."""
        gate.at_end(self._end)

    # --- requests ---------------------------------------------------------------------------------------------------

    def asked(self, head: bytes, judged: Judged | None = None) -> int:
        """Count a request that the app is given: the flag of its pending answer, SAMPLED or 0.

        Behind the head may stand a body that passed with it.
        """
        sampling = self._sampling
        number, is_due = sampling.number, sampling.is_due
        sampling.advance()
        if is_due and self._gate.exempt:
            is_due = not self._is_exempt(head)
        if judged is not None:
            judged.is_sampled = is_due
        elif not is_due:
            return 0
        head = head[: head.index(END_OF_HEAD) + len(END_OF_HEAD)]
        self._pending.append(Http1Sample(number, head, judged))
        self.kept += len(head)
        return SAMPLED

    def judge(self, judged: Judged, number: int | None) -> None:
        """The request with this number, of which the answer is the next, has an exchange now."""
        if self._pending and self._pending[0].number == number:
            self._pending[0].judged = judged
            judged.is_sampled = True

    def _is_exempt(self, head: bytes) -> bool:
        method, target, _ = head.split(b" ", 2)
        return (method, target) in self._gate.exempt

    def diverted(self, head: bytes, judged: Judged | None) -> Http1Sample | None:
        """Count a request that a handler is given; its sample, None if there is none."""
        if not self.asked(head, judged):
            return None
        self._diverted = self._pending.pop()
        self.kept -= len(head)
        return self._diverted

    def refused(self, head: bytes, judged: Judged) -> None:
        """Count a request that nobody is given, and tell it."""
        if self.asked(head, judged):
            self.kept -= len(head)
            tell(self._gate.observer, self._pending.pop())

    # --- answers ----------------------------------------------------------------------------------------------------

    def expect(self, sample: Http1Sample | None) -> int:
        """The app is asked for the answer that a handler did not give: the flag of its pending answer."""
        self._diverted = None
        if sample is None:
            return 0
        self._pending.append(sample)
        self.kept += len(sample.asked)
        return SAMPLED

    def begun(self, head: bytes, response: ResponseHead) -> None:
        """The plain answer of the first pending request has begun."""
        self._pending[0].answers(head, response, response.plain)

    def answered(self) -> None:
        """It is whole."""
        sample = self._pending.popleft()
        self.kept -= len(sample.asked)
        if sample.judged is None:
            self._gate.observer.sampled(sample)
        else:
            tell(self._gate.observer, sample)

    def read(self, reader: ResponseReader, flags: int) -> None:
        """The app's answer to the first pending request, which has these flags, was read so far."""
        if self._pending[0].follow(reader, flags):
            self.answered()

    def finished(self, sample: Http1Sample) -> None:
        """A diverted request is over."""
        self._diverted = None
        tell(self._gate.observer, sample)

    def _end(self) -> None:
        """The connection is over: answers that are not whole have no length."""
        if self._diverted is not None:
            self.expect(self._diverted)
        while self._pending:
            self._pending[0].length = None
            self.answered()


def _shown(head: bytes) -> tuple[bytes, bytes]:
    """Content-Type and Location of a good head."""
    low = head.lower()
    kind = location = b""
    if (at := low.rfind(b"\ncontent-type:")) >= 0:
        kind = _value(head, at + 14)
    if (at := low.rfind(b"\nlocation:")) >= 0:
        location = _value(head, at + 10)
    return kind, location


def _value(head: bytes, at: int) -> bytes:
    """The value of a field in a good head; it begins at `at`."""
    return head[at : head.index(b"\r", at)].strip(b" \t")
