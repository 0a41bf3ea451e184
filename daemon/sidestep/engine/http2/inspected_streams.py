"""What inspection does with the streams of one HTTP/2 connection.

A new stream is judged by its head, unless one look at that tells that neither a filter nor a rule is about it
(`passes`). What becomes of it:

    relayed       no rule can apply: to its head, or to head and body, which have come together
    read          rules can apply, but none can have it refused: it is relayed, and its body and answer are read on
                  their way (`requests`, `responses`), as the mirror reads them
    asked         no rule can apply to its request, but its answer is searched: relayed, and read once something is
                  found in the answer (`asked_streams`)
    controlled    it is refused, or may be: the app's connection never sees its id. It becomes a diverted stream
                  (`inspected_diversion`), which a handler answers, the app on its second connection, or the relay
    declined      its head cannot be read with certainty, or it asks for a tunnel, and a policy closes: it is reset

A stream that is sampled (`inspection.samples`) goes the same way as without that. Of its answer only status and length
are noted, by whoever reads or writes it anyway; one that is answered where nobody does is told at once.

Of a WebSocket that is read or controlled the messages are judged (`inspected_websocket`).

A stream that is to be controlled or declined waits until the app has proved that it speaks HTTP/2, as any diverted one
does; what was decided about it is kept until then (`waiting`), so that it is judged once. What follows its head is read
then. If the client's connection is reset before, nothing of that is read, as nobody has got any of the request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.asked_streams import AskedStreams
from sidestep.engine.http2.head import status_of
from sidestep.engine.http2.inspected_websocket import InspectedWebSocket
from sidestep.engine.http2.passed import H2, PassedHttp2
from sidestep.engine.http2.samples import Http2Sample, told_of, told_of_plain
from sidestep.engine.inspection.judged import Judged
from sidestep.engine.inspection.samples import tell
from sidestep.engine.inspection.sampling import number_of
from sidestep.policy.inspection_match import HTTP2_HEAD
from sidestep.protocols.http2 import ErrorCode
from sidestep.protocols.http2_skim import HOST, PSEUDO, Http2Skimmer

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.inspection.gate import Gate
    from sidestep.engine.mirror.events import Answerer
    from sidestep.policy.inspection import InspectedConnection, Inspection
    from sidestep.policy.route import Fields, Route
    from sidestep.protocols.hpack import Block

SAMPLES: Final = 256
"""Samples of a connection that are kept until they are answered, and ..."""
LONGEST: Final = 4096
"""... bytes of the longest one; others are told at once, without an answer."""
_ANY: Final = b".*"
"""Matches all heads."""


class InspectedStreams:
    """See the module. It stands in the place of the feed for `MirroredData` and `AppResponses`."""

    __slots__ = (
        "_asked", "_connection", "_is_blind", "_judged", "_passed", "_route", "_sampled", "_skimmer", "asked",
        "controlled", "gate", "hears_responses", "requests", "responses", "samples", "waiting", "websockets",
    )  # fmt: skip

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.waiting: dict[int, Judged | ErrorCode] = {}
        """At most one: the client's frames behind it wait, too."""
        self.requests: dict[int, Judged] = {}
        """Relayed streams whose body is read."""
        self.responses: dict[int, Judged] = {}
        """Relayed streams whose answer is read."""
        self.websockets: dict[int, InspectedWebSocket] = {}
        """Those of these streams that are WebSockets."""
        self._asked = AskedStreams(gate)
        self.asked = self._asked.streams
        """Relayed streams whose answers are searched, and not read so far."""
        self.samples: dict[int, Http2Sample] = {}
        """Sampled streams that the app's first connection has yet to answer ..."""
        self.controlled: dict[int, Http2Sample] = {}
        """... and the one that is controlled, until it is diverted."""
        self._judged: Judged | None = None
        """The stream that was judged last; None if no rule can apply to it."""
        self._sampled = 0
        """The last stream of which it was said whether it is sampled."""
        self._passed = 0
        """The last stream of which the firewall is told after it was relayed."""
        self._is_blind = False
        """No answer of the app can be read any more."""
        self._skimmer: Http2Skimmer | None = None
        """What `passes` asks about heads ..."""
        self._route: Route | None = None
        self._connection: InspectedConnection | None = None
        """... while these apply."""
        sampling = gate.sampling
        self.hears_responses = gate.judges_responses or (sampling is not None and sampling.chooses_any)
        """The app's answers are read: some rule is about them, or some are told."""
        if sampling is not None:
            gate.at_end(self._end)

    def passes(self, stream: int, block: Block, route: Route, *, ends: bool) -> bool:
        """Whether a new stream, which `block` opens, is relayed: nothing of the route and no rule is about its head.

        False when that is not certain. What one look has told is remembered with the block. Hot path: no `Head` is
        made, and nobody is asked (see `protocols.http2_skim`).
        """
        gate = self.gate
        connection = gate.connection
        if route is not self._route or connection is not self._connection or connection.inspection.is_outdated:
            self._choose_skimmer(route)
        skimmer = self._skimmer
        if skimmer is None or (gate.tells_later and not ends):
            return False
        if block.cleared is not skimmer.plain:
            if block.cleared is skimmer.other:
                return False
            is_plain = not block.large and skimmer.skim(block.fields)
            block.cleared = skimmer.plain if is_plain else skimmer.other
            if not is_plain:
                return False
        if gate.tells_later:
            self._tell_later(stream, block)
        sampling = gate.sampling
        if sampling is None or not sampling.chooses_any:
            return True
        number = stream >> 1  # `number_of`, without a call
        if sampling.chooses_all or sampling.chooses(number):
            sample = Http2Sample(number, stream, block.shown or told_of_plain(block), None)
            if sample.size <= LONGEST and len(self.samples) < SAMPLES and self.hears_responses and not self._is_blind:
                self.samples[stream] = sample
            else:
                self.give_up(sample)
        return True

    def _choose_skimmer(self, route: Route) -> None:
        """Set what tells of a head that neither the route nor a rule of the connection wants it."""
        gate = self.gate
        self._route, self._connection, self._skimmer = route, gate.connection, None
        inspection = gate.skimmed_for
        if inspection is None or gate.exempt or not gate.is_quick:
            return
        made = inspection.joint_skimmer
        if made is None or made[0] is not route:
            made = inspection.joint_skimmer = route, _joint_skimmer(inspection, route)
        self._skimmer = made[1]

    def judge(
        self, stream: int, head: Head, *, diverts: bool, ends: bool, body: bytes = b""
    ) -> Judged | ErrorCode | None:
        """Judge a new stream; `diverts`: the app's connection will not have it anyway, `ends`: it has no body.

        `body` is all of its body, if that is here: a request in which nothing is found as a whole goes on unread.
        Returns what controls it, the code with which it is declined, or None to relay it.
        """
        known = self.waiting.pop(stream, None)
        if known is not None:
            return known
        gate = self.gate
        token = gate.token
        # A firewall that is told later wants bodies, and messages of a WebSocket.
        is_alone = not gate.tells_later or (ends and not head.is_extended_connect)
        is_clear = is_alone and (head.cleared is token or (ends and head.cleared_alone is token) or self._skims(head))
        if is_clear or (gate.asks and not diverts and self._asks(stream, head, ends=ends, body=body)):
            fate = self._judged = None
        else:
            fate = self._judge(stream, head, diverts=diverts, ends=ends, body=body)
        if gate.tells_later and fate is None and self._judged is None and is_alone:
            self._tell_later(stream, head)
        sampling = gate.sampling
        judged = self._judged
        if sampling is not None and (judged is not None or sampling.chooses_any) and stream > self._sampled:
            self._sampled = stream
            is_sampled = sampling.chooses(number := number_of(stream))
            if gate.exempt:
                is_sampled = is_sampled and (head.method, head.path) not in gate.exempt
            if judged is not None:
                judged.is_sampled = is_sampled
            if (is_sampled or judged is not None) and not isinstance(fate, ErrorCode):
                sample = Http2Sample(number, stream, told_of(head), judged)
                self._sample(sample, is_controlled=fate is not None, diverts=diverts)
        return fate

    def _tell_later(self, stream: int, head: Head | Block) -> None:
        """Have the firewall told of a stream that is relayed: this head, and nothing else (`Gate.tells_later`)."""
        if stream <= self._passed or self.gate.connection.inspection.is_outdated:
            return
        self._passed = stream
        firewall = self.gate.firewall
        if firewall is not None and firewall.pass_by is not None:
            firewall.pass_by(PassedHttp2(firewall, self.gate, head, stream))

    def _skims(self, head: Head) -> bool:
        """Whether a head is sound and no rule can apply to it, as far as one look at it tells."""
        if not (self.gate.is_quick and self._is_plain(head)):
            return False
        head.cleared = self.gate.token
        return True

    def _is_plain(self, head: Head) -> bool:
        """Whether a head is sound, and no rule applies to it but one that looks at each request."""
        inspection = self.gate.skimmed_for
        if inspection is None or not head.readable or len(head.pseudo) != PSEUDO:
            return False
        skimmer: Http2Skimmer | None = inspection.stream_skimmer
        if skimmer is None:
            needles = inspection.head_needles(HTTP2_HEAD, leaves_out_always=True)
            skimmer = inspection.stream_skimmer = Http2Skimmer((_ANY,) if needles is None else needles)
        return skimmer.skim(head.listed)

    def _asks(self, stream: int, head: Head, *, ends: bool, body: bytes) -> bool:
        """Whether no rule can apply to a request, and its answer is searched as `AskedStreams` does."""
        gate = self.gate
        connection, token = gate.connection, self._asked.token
        if gate.closes or self._is_blind or connection.may_block_answers or connection.inspection.is_outdated:
            return False
        if connection.searches_requests and not ends:
            if not body or not self._clears(head, body):
                return False
        elif token is None or head.asked is not token:
            if (connection.searches_requests or not self._is_plain(head)) and not self._clears(head):
                return False
            head.asked = token
        return self._asked.add(stream, head)

    def _clears(self, head: Head, body: bytes = b"") -> bool:
        """As `Gate.clears`, for a head that was not validated."""
        return not (_not_seen(head)[0] or head.is_extended_connect) and self.gate.clears(head.path, head.fields, body)

    def _judge(self, stream: int, head: Head, *, diverts: bool, ends: bool, body: bytes) -> Judged | ErrorCode | None:
        """As `judge`, for a head about which the rules were not asked yet."""
        gate = self.gate
        self._judged = None
        reason, code = _not_seen(head)
        if reason and gate.closes:
            gate.uninspected(reason, closed=True)
            return code
        is_alone = ends and not head.is_extended_connect
        if not reason and (is_alone or not gate.tells_later) and gate.rules_out_request(head.path, head.fields):
            head.cleared = gate.token
            return None
        is_here = is_alone or (body and not head.is_extended_connect)
        if not reason and is_here and not gate.asks and gate.clears(head.path, head.fields, body):
            if is_alone:
                head.cleared_alone = gate.token
            return None
        judged = self._judged = gate.judge(H2, head.method, head.path, head.fields, stream=stream, ends=is_alone)
        if reason:
            gate.uninspected(reason, closed=False)
        if judged is None:
            if not reason and is_alone:
                head.cleared_alone = gate.token
            elif not reason:
                head.cleared = gate.token
            return None
        if not judged.is_inspected:
            return None
        if head.is_extended_connect:
            judged.firewall.ask_ahead()
        if judged.refusal is not None or diverts or gate.closes or judged.holds_response or judged.awaits_firewall:
            return judged
        if judged.holds_request and not ends:
            return judged
        if head.is_extended_connect and not ends and not self._is_blind:
            self._read_websocket(stream, judged, head)
            return None
        self._read(stream, judged, ends=ends)
        return None

    def _read_websocket(self, stream: int, judged: Judged, head: Head) -> None:
        """The same for a WebSocket.

        Where answers are not read, what the client has offered stands for what was agreed: a client whose offer was not
        accepted does not compress.
        """
        websocket = self.websockets[stream] = InspectedWebSocket(judged, self.gate.limits)
        self.requests[stream] = judged
        if self.hears_responses:
            self.responses[stream] = judged
        else:
            websocket.answered(head.fields, 200)
        self._keep(stream, judged)

    def _read(self, stream: int, judged: Judged, *, ends: bool) -> None:
        """Read a stream on its way."""
        if ends:
            judged.request_end()
        elif judged.reads_request:
            self.requests[stream] = judged
        if judged.reads_response and not self._is_blind:
            self.responses[stream] = judged
        self._keep(stream, judged)

    def adopt(self, stream: int, judged: Judged) -> None:
        """Take a relayed stream whose request came over HTTP/1: that of an upgrade to h2c.

        Its answer is read on its way, and cannot be held.
        """
        if not judged.reads_response:
            return
        if judged.holds_response:
            self.gate.uninspected("h1-h2c-upgrade", closed=False)
            return
        self.responses[stream] = judged
        self._keep(stream, judged)

    def _keep(self, stream: int, judged: Judged) -> None:
        """Account for the head of a stream that is read on its way, or read nothing of it if there is no room."""
        if (stream in self.requests or stream in self.responses) and not judged.keep_head():
            self.requests.pop(stream, None)
            self.responses.pop(stream, None)
            self.websockets.pop(stream, None)
            judged.break_off()
            judged.forget()

    def _over(self, stream: int, judged: Judged) -> None:
        """Learn that a half of a stream is read no further."""
        if stream not in self.requests and stream not in self.responses:
            self.websockets.pop(stream, None)
            judged.break_off()
            judged.forget()

    def _sample(self, sample: Http2Sample, *, is_controlled: bool, diverts: bool) -> None:
        """Note a sampled stream, or tell it if nobody will learn how it is answered."""
        if is_controlled:
            self.controlled[sample.stream] = sample
        elif diverts or self._is_blind or not self.hears_responses or self._is_much(sample):
            self.give_up(sample)
        else:
            self.samples[sample.stream] = sample

    def _is_much(self, sample: Http2Sample) -> bool:
        """Whether a sample is not kept until it is answered: a client may open streams that no app answers."""
        return len(self.samples) >= SAMPLES or sample.size > LONGEST

    def give_up(self, sample: Http2Sample | None) -> None:
        """Tell a sampled stream, if there is one, whose answer nobody sees to its end."""
        if sample is not None:
            sample.length = None
            tell(self.gate.observer, sample)

    def cut(self, stream: int) -> None:
        """Nothing more of this stream will come: the end of what has come of its halves is searched."""
        if stream in self.asked:
            self._asked.remove(stream)  # what has come of its answer was searched
        judged = self.requests.pop(stream, None)
        judged = self.responses.pop(stream, judged)
        if judged is not None:
            self._over(stream, judged)
        if stream in self.samples:
            self.give_up(self.samples.pop(stream))

    def client_ended(self) -> None:
        """Nothing more of any request will come."""
        for stream, judged in [*self.requests.items()]:
            if (websocket := self.websockets.get(stream)) is not None:
                websocket.client_ends()
            judged.request_end(is_whole=False)
            del self.requests[stream]
            self._over(stream, judged)

    def cut_all(self) -> None:
        """Nothing more of any relayed stream is read."""
        self.gate.break_off()
        for stream in [*self.requests, *self.responses, *self.asked]:
            self.cut(stream)

    def _end(self) -> None:
        """The connection is over."""
        for sample in (*self.samples.values(), *self.controlled.values()):
            self.give_up(sample)
        self.samples.clear()
        self.controlled.clear()

    # --- requests of relayed streams --------------------------------------------------------------------------------

    def body(self, stream: int, data: bytes, *, ends: bool) -> None:
        """Take data of a request's body, possibly empty."""
        judged = self.requests[stream]
        websocket = self.websockets.get(stream)
        if websocket is not None:
            websocket.client_says(data)
        else:
            judged.request_body(data)
        if ends:
            del self.requests[stream]
            if websocket is not None:
                websocket.client_ends()
            else:
                judged.request_end()
            self._over(stream, judged)

    def trailers(self, stream: int, block: Block) -> None:
        """Take the trailers of a request."""
        judged = self.requests.pop(stream, None)
        if judged is not None:
            judged.request_trailers(text_of(block.fields))
            judged.request_end()
            self._over(stream, judged)

    # --- answers of relayed streams ---------------------------------------------------------------------------------

    def read_asked(self, stream: int) -> None:
        """Read the answer to a stream that was asked, from its beginning."""
        asked = self._asked.remove(stream)
        gate, head = self.gate, asked.head
        exchange = asked.connection.request(head.method, head.path, head.fields, gate.now)
        number = None if gate.sampling is None else number_of(stream)
        judged = Judged(
            gate, exchange, protocol=H2, stream=stream, method=head.method, target=head.path, fields=head.fields,
            number=number,
        )  # fmt: skip
        if (sample := self.samples.get(stream)) is not None:
            sample.judged = judged
            judged.is_sampled = True
        self._read(stream, judged, ends=True)
        if stream in self.responses and asked.block is not None:
            read_block(judged, asked.block)
            if asked.body:
                judged.response_body(asked.body)

    def clears_data(self, stream: int, data: bytes, *, ends: bool) -> bool:
        """Take data of an answer that is searched only; False if it has to be read instead, this data included."""
        if self._asked.clears_data(stream, data, ends=ends):
            return True
        self.read_asked(stream)
        return False

    def asked_block(self, stream: int, block: Block, *, ends: bool) -> None:
        """The same of a header block; it is read by `response_block` then."""
        if not self._asked.clears_head(stream, block, ends=ends):
            self.read_asked(stream)

    def whole_response(self, stream: int, block: Block, size: int) -> bool:
        """Have a whole answer told in parts."""
        del stream, block, size
        return False

    def response_block(self, stream: int, by: Answerer, block: Block, *, ends: bool) -> None:
        """Take a header block of an answer."""
        del by
        if (sample := self.samples.get(stream)) is not None:
            sample.answers(block)
        judged = self.responses[stream]
        read_block(judged, block)
        if (websocket := self.websockets.get(stream)) is not None and (status := status_of(block)) >= 200:
            websocket.answered(block.fields[1:], status)
        if ends:
            self.response_end(stream)

    def response_data(self, stream: int, data: bytes) -> None:
        """Take data of an answer, without padding."""
        if (sample := self.samples.get(stream)) is not None and sample.length is not None:
            sample.length += len(data)
        websocket = self.websockets.get(stream)
        if websocket is not None:
            websocket.peer_says(data)
        elif stream in self.responses:
            self.responses[stream].response_body(data)

    def response_end(self, stream: int) -> None:
        """The answer is whole."""
        judged = self.responses.pop(stream, None)
        if judged is not None:
            websocket = self.websockets.get(stream)
            if websocket is not None:
                websocket.peer_ends()
            else:
                judged.response_end()
            self._over(stream, judged)
        sample = self.samples.pop(stream, None)
        if sample is None:
            return
        if sample.judged is None:
            self.gate.observer.sampled(sample)
        else:
            tell(self.gate.observer, sample)

    def lose_responses(self) -> None:
        """What the app answers cannot be read any more."""
        self._is_blind = True
        for stream in [*self.asked]:
            self._asked.remove(stream)
        for stream, judged in [*self.responses.items()]:
            if (websocket := self.websockets.get(stream)) is not None:
                websocket.peer_ends()
            judged.response_end(is_whole=False)
            del self.responses[stream]
            self._over(stream, judged)
        for sample in self.samples.values():
            self.give_up(sample)
        self.samples.clear()
        self.gate.uninspected("h2-unreadable-responses", closed=False)


def _joint_skimmer(inspection: Inspection, route: Route) -> Http2Skimmer | None:
    """What tells of a head that neither a filter nor a rule wants it; None if nothing can."""
    needles = inspection.head_needles(HTTP2_HEAD, leaves_out_always=True)
    if needles is None or route.needles is None or HOST in route.needles:
        return None
    return Http2Skimmer(needles, route.needles, route.headless)


def _not_seen(head: Head) -> tuple[str, ErrorCode]:
    """Why a stream of this head is not inspected, and the code with which it is reset then; empty if it is."""
    if not head.is_valid():
        return "h2-head", ErrorCode.PROTOCOL_ERROR
    if head.method == b"CONNECT" and head.pseudo.get(b":protocol") != b"websocket":
        return "h2-connect", ErrorCode.CONNECT_ERROR
    return "", ErrorCode.NO_ERROR


def read_block(judged: Judged, block: Block) -> None:
    """Give a header block of an answer to the rules: an informational or final head, or trailers."""
    status = status_of(block)
    if status >= 200:
        judged.response_head(block.fields[1:], status)
    elif status:
        judged.response_interim(block.fields[1:])
    elif status == 0:
        judged.response_trailers(text_of(block.fields))


def text_of(fields: Fields) -> bytes:
    """The text of a trailer section, as HTTP/1 would show it."""
    return b"".join(name + b": " + value + b"\r\n" for name, value in fields)
