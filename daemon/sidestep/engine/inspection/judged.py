"""One exchange to which rules may apply: what they say as it goes by, and what has to be done.

Both engines drive it with the decoded parts of an exchange, in order; a part may be left out at the end. After each
call they look at `refusal`:

    None     the exchange goes on. While `holds_request` (`holds_response`) what was given of that half so far stays in
             the relay, up to the window
    a text   the exchange is over: a rule blocks it, or it cannot be inspected and a policy closes. The text is the body
             of the answer, or nothing but a reset is left

`refusal` never changes once it is set. Every hit is told to the observer at the call that finds it.

A half ends in one of two ways: it is whole (`request_end`, `response_end`), or it is broken off (`break_off`), by
whoever and for whatever reason. Either way the end of what was given is searched, once. A half that has begun stands in
`Connection.unfinished` until then, so that no end is missed.

With a firewall (`engine.inspection.firewall`) the request as a whole is judged elsewhere: asked about at its end, and
where a policy enforces held until there is an answer (`awaits_firewall`), which comes by itself. A request that cannot
be asked about as a whole is over the limits of the firewall. So is the response (`firewall_response`): where a policy
enforces it is held from its head until there is an answer (`awaits_response_verdict`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sidestep.engine.inspection.body import InspectedBody
from sidestep.engine.inspection.firewall import NO_FIREWALL, FirewallRequest, Question
from sidestep.engine.inspection.firewall_response import NO_FIREWALL_RESPONSE, FirewallResponse
from sidestep.engine.inspection.records import ExchangeRecord, FileRecord, HitRecord
from sidestep.engine.memory_budget import Share

if TYPE_CHECKING:
    from sidestep.engine.inspection.body_file import BodyFile
    from sidestep.engine.inspection.connection import Connection, Messages
    from sidestep.engine.inspection.firewall import Firewall
    from sidestep.engine.inspection.samples import Sample
    from sidestep.policy.inspected_exchange import Exchange, Unread
    from sidestep.policy.route import Fields

_MEMORY: Final = "memory"
"""Why the rest of an exchange is not inspected: the connection keeps more than its share for verdicts."""
FIELD: Final = 160
"""Bytes that a field of a head takes beside its text: two objects and the pair of them."""
_REQUEST: Final = 1
_RESPONSE: Final = 2
_MESSAGES: Final = 4
"""Parts of an exchange that have begun and not ended."""


class Judged:
    """See the module. Made by `Gate.judge`."""

    __slots__ = (
        "_answer", "_exchange", "_fields", "_gate", "_host", "_in_request_trailers", "_in_response_trailers", "_kept",
        "_memory", "_messages", "_method", "_number", "_open", "_protocol", "_request_body", "_response_body",
        "_status", "_stream", "_target", "_told", "_unread", "firewall", "firewall_response", "id", "is_sampled",
        "refusal", "refused_by", "wants_answer",
    )  # fmt: skip

    def __init__(
        self,
        gate: Connection,
        exchange: Exchange,
        *,
        protocol: str,
        stream: int,
        method: bytes,
        target: bytes,
        fields: Fields,
        number: int | None = None,
        firewall: Firewall | None = None,
    ) -> None:
        self._gate = gate
        self._exchange = exchange
        self._protocol = protocol
        self._stream = stream
        self._method = method
        self._target = target
        self._host = next((value for name, value in fields if name == b"host"), b"")
        self._fields = fields
        self._number = number
        self._status: int | None = None
        self._answer: Fields = ()
        self._told = 0
        """Hits of the verdict that the observer knows."""
        self._unread: frozenset[Unread] = frozenset()
        self.id = gate.new_id()
        self.refusal: str | None = None
        self.refused_by = ""
        """The policy that the refusal names."""
        self.is_sampled = False
        """It is told if no rule applies to it; whoever samples says so."""
        self.wants_answer = False
        """A hit was told before there was an answer."""
        self.firewall = NO_FIREWALL
        self.firewall_response = NO_FIREWALL_RESPONSE
        if firewall is not None:
            question = Question(protocol, method, target, fields)
            self.firewall = FirewallRequest(firewall, self, gate, question)
            if firewall.settings.profile.responses:
                self.firewall_response = FirewallResponse(firewall, self, gate, question)
        self._request_body: InspectedBody | None = None
        """None if nobody wants it."""
        is_read = exchange.reads_request
        if is_read or firewall is not None:
            self._request_body = InspectedBody(
                fields, self._feed_request, self._end_request_message, gate.limits,
                feed_sent=self._feed_sent if is_read else None, has_file=is_read and number is not None,
            )  # fmt: skip
        self._response_body: InspectedBody | None = None
        self._memory = Share(gate.memory)
        self._kept = 0
        """Bytes that whoever drives the exchange keeps for it."""
        self._in_request_trailers = False
        self._in_response_trailers = False
        self._open = 0
        """Which parts have begun and not ended."""
        self._messages: Messages | None = None
        self._conclude("request")
        self.firewall.begin()

    # --- what is wanted -----------------------------------------------------------------------------------------------

    @property
    def reads_request(self) -> bool:
        """Whether the request's body has to be given."""
        body = self._request_body
        if body is None or body.is_over:
            return False
        if self.firewall.is_collecting:
            return True
        return self._exchange.reads_request or (body.file is not None and body.file.wants_more)

    @property
    def holds_request(self) -> bool:
        """Whether the request's body, or the firewall, may still lead to its being blocked."""
        body = self._request_body
        return self.awaits_firewall or (body is not None and self._exchange.holds_request and not body.is_over)

    @property
    def awaits_firewall(self) -> bool:
        """Whether the request has to be held, whole, until the firewall has answered."""
        return self.refusal is None and self.firewall.is_awaited

    @property
    def request_pending(self) -> int | None:
        """How many of the last bytes of the request's body may not go on yet, because their message has not ended.

        None if it is not a stream of messages: then none of it may, until it is whole.
        """
        body = self._request_body
        return None if body is None or self.awaits_firewall else body.pending

    @property
    def reads_response(self) -> bool:
        """Whether the response's head, or once that was given its body, has to be given."""
        body = self._response_body
        if body is None:
            return self._exchange.reads_response or self.firewall_response.is_wanted
        if body.is_over:
            return False
        if self.firewall_response.is_collecting:
            return True
        return self._exchange.reads_response or (body.file is not None and body.file.wants_more)

    @property
    def has_hit(self) -> bool:
        """Whether a rule has applied, so that the exchange was told."""
        return self._told > 0 or self.firewall.has_hit or self.firewall_response.has_hit

    @property
    def is_inspected(self) -> bool:
        """Whether a rule may still look at anything, or has refused the exchange, or the firewall may."""
        return self.refusal is not None or self.reads_request or self.reads_response or self.awaits_firewall

    @property
    def holds_response(self) -> bool:
        """Whether what is left of the response may lead to its being blocked."""
        body = self._response_body
        return self.awaits_response_verdict or (self._exchange.holds_response and (body is None or not body.is_over))

    @property
    def awaits_response_verdict(self) -> bool:
        """Whether the response may not go to the client before the firewall has answered."""
        return self.refusal is None and self.firewall_response.is_awaited

    @property
    def is_unavailable(self) -> bool:
        """Whether it is refused because there was no verdict."""
        return self.firewall.is_unavailable or self.firewall_response.is_unavailable

    # --- what goes by -------------------------------------------------------------------------------------------------

    def request_body(self, data: bytes) -> None:
        """Take the next bytes of the request's body."""
        body = self._request_body
        if body is not None and self.reads_request:
            self._begin(_REQUEST)
            may_block = self._exchange.holds_request
            body.read(data)
            if body.is_over:
                self._end_request()  # of what can be read
            self._after_body(body, "request", may_block=may_block)
            if body.reason is not None:
                self.firewall.exceed()

    def request_trailers(self, lines: bytes) -> None:
        """Take the trailer section of a request, as text: it is searched like the body, undecoded."""
        if lines and self.reads_request:
            if self._exchange.reads_request:
                text = lines if self._in_request_trailers else b"\n" + lines
                self._exchange.request_body(text, self._gate.now)
            self._in_request_trailers = True
            self._conclude("request")

    def request_end(self, *, is_whole: bool = True) -> None:
        """Learn that the request is over; not `is_whole` if the client has broken it off."""
        body = self._request_body
        if body is not None and self.reads_request:
            may_block = self._exchange.holds_request
            body.end()
            self._end_request()
            self._after_body(body, "request", may_block=may_block, is_whole=is_whole, is_over=True)
            if body.reason is not None:
                self.firewall.exceed()
        self._end(_REQUEST)
        self.firewall.request_end(is_whole=is_whole and self.refusal is None)

    def keep(self, size: int, half: str) -> bool:
        """Learn that so many bytes more are kept of "request" or "response", or less if negative.

        Returns whether the exchange is refused for that.
        """
        self._kept += size
        if size > 0:
            self._charge(half, may_block=True)
        else:
            self._memory.set(self._held)
        return self.refusal is not None

    def keep_head(self) -> bool:
        """Account for the request's head, which is kept until `forget`: for a stream that is read on its way.

        Returns whether anything is read of the exchange; nothing is any more where there is no room.
        """
        head = len(self._target) + sum(len(name) + len(value) + FIELD for name, value in self._fields)
        self._kept += head
        self._charge("request" if self.reads_request else "response", may_block=False)
        return self.reads_request or self.reads_response

    def forget(self) -> None:
        """Learn that nothing is kept of the exchange any more."""
        self._kept = 0
        self._memory.set(0)

    def request_exceeds(self, reason: str) -> None:
        """Learn that the request cannot be held until there is a verdict (`limits.WINDOW`, `limits.SLOW`).

        What has come of it is searched first, to its end if it is refused for that, and is over.
        """
        if self._exchange.holds_request:
            if self._gate.closes:
                self._exchange.request_end(self._gate.now)
            else:
                self._exchange.request_so_far(self._gate.now)
            self._conclude("request")
            if self.refusal is None:
                self._uninspectable(f"request-{reason}", may_block=True)
        self.firewall.exceed()

    def response_interim(self, fields: Fields) -> None:
        """Take the head of an informational response (1xx), which comes before the final one."""
        if fields and self._response_body is None and self._exchange.reads_response:
            self._exchange.response_interim(fields, self._gate.now)
            self._conclude("response")

    def response_head(self, fields: Fields, status: int) -> None:
        """Take the head of the final response; names are in lower case."""
        self._status = status
        self._answer = fields
        is_read = self._exchange.reads_response
        self.firewall_response.head(fields, status)
        if not (is_read or self.firewall_response.is_collecting):
            return
        limits = self._gate.limits
        has_file = is_read and self._number is not None
        self._response_body = InspectedBody(
            fields, self._feed_response, self._end_response_message, limits, has_file=has_file
        )
        self._begin(_RESPONSE)
        if is_read:
            self._exchange.response_head(fields, self._gate.now)
            self._conclude("response")

    def response_body(self, data: bytes) -> None:
        """Take the next bytes of the response's body."""
        body = self._response_body
        if body is not None and self.reads_response:
            may_block = self._exchange.holds_response
            body.read(data)
            if body.is_over:
                self._end_response()  # of what can be read
            self._after_body(body, "response", may_block=may_block)

    def response_trailers(self, lines: bytes) -> None:
        """As `request_trailers`."""
        if lines and self._exchange.reads_response and self.reads_response:
            self._feed_response(lines if self._in_response_trailers else b"\n" + lines)
            self._in_response_trailers = True
            self._conclude("response")

    def response_end(self, *, is_whole: bool = True) -> None:
        """Learn that the response is over; not `is_whole` if it is broken off."""
        body = self._response_body
        if body is not None and self.reads_response:
            may_block = self._exchange.holds_response
            body.end()
            self._end_response()
            self._after_body(body, "response", may_block=may_block, is_whole=is_whole, is_over=True)
        self._end(_RESPONSE)

    def break_off(self) -> bool:
        """Learn that nothing more of the exchange is read: the end of what has come is searched.

        Returns whether a request is broken off that way. To be called when an exchange is over in any other way than by
        the ends of both halves; without effect after those.
        """
        messages, self._messages = self._messages, None
        if messages is not None:
            messages.close()
            self._end(_MESSAGES)
        is_request = bool(self._open & _REQUEST)
        if is_request:
            self.request_end(is_whole=False)
        if self._open & _RESPONSE:
            self.response_end(is_whole=False)
        return is_request

    def abandon(self) -> None:
        """Learn that nothing more of the exchange is read, and search nothing of what has come."""
        self._messages = None
        self._exchange.give_up()
        self.firewall_response.give_up()
        self._end(self._open)

    def _begin(self, part: int) -> None:
        if not self._open & part and self.refusal is None:
            self._open |= part
            self._gate.unfinished[self] = None

    def _end(self, part: int) -> None:
        if self._open:
            self._open &= ~part
            if not self._open:
                self._gate.unfinished.pop(self, None)

    # --- what goes by after the app has switched protocols ------------------------------------------------------------

    def switched(self, messages: Messages) -> None:
        """Learn who reads the messages that follow."""
        self._messages = messages
        self._begin(_MESSAGES)

    @property
    def reads_request_messages(self) -> bool:
        """Whether a rule wants the messages of the client."""
        return self.refusal is None and self._exchange.reads_request

    @property
    def reads_response_messages(self) -> bool:
        """Whether a rule wants the messages of the other side, whose head was given."""
        return self.refusal is None and self._response_body is not None and self._exchange.reads_response

    def request_message(self, data: bytes, reason: str | None) -> None:
        """Take a message of the client; `reason` says why it is not all of it."""
        may_block = self._exchange.holds_request
        self._feed_request(data)
        self._end_request_message()
        self._conclude("request")
        if reason is not None:
            self._uninspectable(f"request-{reason}", may_block=may_block)

    def response_message(self, data: bytes, reason: str | None) -> None:
        """As `request_message`, of the other side."""
        may_block = self._exchange.holds_response
        self._feed_response(data)
        self._end_response_message()
        self._conclude("response")
        if reason is not None:
            self._uninspectable(f"response-{reason}", may_block=may_block)

    # --- conclusions --------------------------------------------------------------------------------------------------

    def _feed_request(self, data: bytes) -> None:
        if self._exchange.reads_request:
            self._exchange.request_body(data, self._gate.now)
        self.firewall.add(data)

    def _end_request(self) -> None:
        if self._exchange.reads_request:
            self._exchange.request_end(self._gate.now)

    def _feed_sent(self, data: bytes) -> None:
        self._exchange.request_body(data, self._gate.now, encoded=True)

    def _feed_response(self, data: bytes) -> None:
        if self._exchange.reads_response:
            self._exchange.response_body(data, self._gate.now)
        self.firewall_response.add(data)

    def _end_response(self) -> None:
        if self._exchange.reads_response:
            self._exchange.response_end(self._gate.now)
        self.firewall_response.end()

    def _end_request_message(self) -> None:
        if self._exchange.reads_request:
            self._exchange.request_end(self._gate.now, of_message=True)

    def _end_response_message(self) -> None:
        if self._exchange.reads_response:
            self._exchange.response_end(self._gate.now)

    @property
    def _held(self) -> int:
        """Bytes that are kept for the exchange: nothing of a refused one."""
        if self.refusal is not None:
            return 0
        kept = self._kept + self.firewall.held + self.firewall_response.held + self._exchange.held
        if self._request_body is not None:
            kept += self._request_body.memory
        if self._response_body is not None:
            kept += self._response_body.memory
        return kept

    def _holds_too_much(self) -> bool:
        """Account for what is kept; returns whether that is too much."""
        self._memory.set(self._held)
        return self._memory.held > 0 and self._gate.memory.is_over

    def _charge(self, half: str, *, may_block: bool) -> None:
        """Account for what is kept; give up if that is too much: first what is kept to be hashed only."""
        if not self._holds_too_much():
            return
        for body in (self._request_body, self._response_body):
            if body is not None and body.file is not None:
                body.file.give_up()
        if self._holds_too_much() and (self.reads_request or self.reads_response):
            self._exchange.request_end(self._gate.now)
            self._exchange.response_end(self._gate.now)
            self._conclude(half)
            if self.refusal is not None:
                return
            self._exchange.give_up()
            self._request_body = self._response_body = None
            self.firewall.exceed()
            self.firewall_response.give_up()
            self._memory.set(self._held)
            self._uninspectable(f"{half}-{_MEMORY}", may_block=may_block)

    def _after_body(
        self, body: InspectedBody, half: str, *, may_block: bool, is_whole: bool = False, is_over: bool = False
    ) -> None:
        before = self._told
        self._conclude(half)
        if body.file is not None and any(hit.told for hit in self._exchange.verdict.hits[before:]):
            body.file.begin()
        self._charge(half, may_block=may_block)
        if body.reason is not None and not body.is_told:
            body.is_told = True
            self._uninspectable(f"{half}-{body.reason}", may_block=may_block)
        file = body.file
        if file is None or not file.has_begun or file.is_told:
            return
        if is_over or body.reason is not None or self.refusal is not None or not file.wants_more:
            self._tell_file(body, file, half, is_whole=is_whole and body.reason is None)

    def _tell_file(self, body: InspectedBody, file: BodyFile, half: str, *, is_whole: bool) -> None:
        """Tell of a body that is over, or of which no more is read."""
        sha256 = file.finish(is_whole=is_whole or body.length == file.size)
        self._gate.observer.file(FileRecord(self.record(), half == "response", file.size, sha256))

    def _conclude(self, half: str) -> None:
        """Tell what is new, and refuse what is blocked."""
        exchange, gate = self._exchange, self._gate
        hits = exchange.verdict.hits
        if len(hits) > self._told:
            record = self.record()
            for hit in hits[self._told :]:
                told = HitRecord(
                    record, hit.policy, hit.rule, hit.outcome, hit.would_block, hit.told, hit.pattern,
                    half == "response", gate.now,
                )  # fmt: skip
                gate.observer.hit(told)
                self.wants_answer |= hit.told and self._status is None
            self._told = len(hits)
            blocker = exchange.verdict.blocker
            if blocker is not None:
                self.refuse(blocker.policy)
        for reason in sorted(exchange.unread - self._unread):
            self._uninspectable(f"{half}-{reason}", may_block=True)
        self._unread = exchange.unread

    def _uninspectable(self, reason: str, *, may_block: bool) -> None:
        """Count what rules did not see; refuse it if a policy closes and one of them could have blocked."""
        gate, closing = self._gate, self._exchange.closing
        closed = may_block and (gate.closes or bool(closing))
        gate.observer.uninspected(reason, closed=closed)
        if closed:
            self.refuse(gate.closing_policy if gate.closes else closing)

    def record(self) -> ExchangeRecord:
        """What is known of the exchange."""
        return ExchangeRecord(
            self.id, self._protocol, self._number, self._stream, self._method, self._target, self._host, self._fields,
            self._status, self._answer,
        )  # fmt: skip

    def answered(self, sample: Sample) -> ExchangeRecord:
        """What is told of the exchange once its answer is over."""
        kind, location = sample.answer
        told = ((b"content-type", kind), (b"location", location))
        answer = [(name, value) for name, value in told if value]
        return replace(self.record(), status=sample.status, answer=answer, length=sample.length)

    def refuse(self, policy: str) -> None:
        """Refuse the exchange, for this policy."""
        if self.refusal is None:
            self.refused_by = policy
            self.refusal = f"sidestep: policy {policy}, id {self.id}"
            self.firewall_response.cancel()
            self._memory.set(0)
            self._end(self._open)
