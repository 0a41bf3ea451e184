"""The diverted request of one HTTP/1 connection.

Who answers it:

    the handler        as long as it can
    a second leg       to the same handler, when the first had served before and was closed in this very moment
    the app            nothing of the body was given and nothing answered (`DivertedRequest.replayable`)
    the relay itself   502 (400 for a body that is not well-formed) when no final head has gone to the client
    nobody             a final head has: the client's connection is reset

What a handler says goes to the client once its head is understood, so that until then there is a choice of what to say
instead. There is at most one diverted request at a time, and its leg is then `ConnectionState.answering_leg`. After it
the client's requests are read on (`Host.proceed`), or, where its answer or its failure ends the connection, discarded.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from sidestep.engine.http1.diverted_request import DivertedRequest, own_answer
from sidestep.engine.http1.inspected_answer import refused
from sidestep.engine.http1.state import OVER
from sidestep.engine.leg import Ending, Leg
from sidestep.engine.mirror.events import Answerer
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import ANSWER_FLAGS, HTTP_1_0, Http1Limits
from sidestep.protocols.http1_response_head import response_fields
from sidestep.protocols.http1_responses import TOO_LARGE

if TYPE_CHECKING:
    from sidestep.engine.http1.conclusion import Conclusion
    from sidestep.engine.http1.early_data import EarlyData
    from sidestep.engine.http1.feed import Http1Feed
    from sidestep.engine.http1.inspected_answer import InspectedAnswer
    from sidestep.engine.http1.inspection import Http1Inspection
    from sidestep.engine.http1.peers import Peers
    from sidestep.engine.http1.routing import RoutedRequest
    from sidestep.engine.http1.state import ConnectionState
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.mirror.producer import Mirror
    from sidestep.policy.route import Rule
    from sidestep.protocols.http1_responses import ResponseReader


_HEADS: Final = frozenset((messages.INTERIM, messages.FINAL))
_UNSOLICITED: Final = "h1-response-unsolicited-switch"
"""Why a connection becomes a wire after a handler answered with a switch that it may not choose."""


class Host(Protocol):
    """The relay around it."""

    client: Leg
    mirror: Mirror
    now: float
    deadline: float | None

    def proceed(self) -> None:
        """Earlier answers are complete: read what was kept of the client."""


class Diversion:
    """See the module."""

    __slots__ = ("_conclusion", "_early", "_feed", "_host", "_inspection", "_limits", "_peers", "_state")

    def __init__(
        self,
        host: Host,
        state: ConnectionState,
        peers: Peers,
        feed: Http1Feed,
        early: EarlyData,
        conclusion: Conclusion,
        *,
        limits: Http1Limits,
        inspection: Http1Inspection | None = None,
    ) -> None:
        self._host = host
        self._state = state
        self._peers = peers
        self._feed = feed
        self._early = early
        self._conclusion = conclusion
        self._limits = limits
        self._inspection = inspection

    def begin(self, rule: Rule, request: RoutedRequest, head: bytes) -> None:
        """Divert a request whose head has come."""
        leg, reused = self._peers.handler(rule)
        self._state.answering_leg = leg
        diverted = self._state.diverted = DivertedRequest(rule, leg, request, head, self._limits, reused=reused)
        diverted.mirrored = self._feed.current

    def give(self, diverted: DivertedRequest) -> None:
        """Write what is kept of the request to its (open) leg."""
        leg = diverted.leg
        if leg.ending:
            return
        if not diverted.given:
            request = diverted.request
            self._host.mirror.diverted(
                diverted.mirrored, diverted.rule, request.method, request.target, request.authority
            )
        diverted.give()
        if self._state.client_ended and not self._state.unread:
            leg.end(Ending.FINISH)

    def read(self, diverted: DivertedRequest, data: bytes) -> None:
        """Forward a handler's answer as far as it is understood."""
        if diverted.answered or diverted.is_waiting:
            diverted.is_clean = False
            self._peers.drop_handler(diverted.leg, Ending.ABORT)
            return
        diverted.answering = True
        reader = diverted.reader
        flags = diverted.request.flags
        at = 0
        while at < len(data) or reader.event == messages.FINAL:
            start = at
            at = reader.read(data, at, flags)
            event = reader.event
            if diverted.mirrored and (event != messages.SWITCH or diverted.may_switch()):
                self._feed.read(diverted.mirrored, Answerer.HANDLER, reader, data[start:at], self._host.now)
            _note_sample(diverted, reader)
            if event == messages.MORE:
                if not reader.in_head and start < len(data) and not self._body(diverted, data[start:]):
                    return
            elif event in _HEADS:
                if not self._head_came(diverted, event):
                    return
            elif event == messages.COMPLETE:
                if at > start and not self._body(diverted, data[start:at]):
                    return
                self._answered(diverted, clean=at == len(data))
                return
            elif event == messages.SWITCH and diverted.may_switch():
                if not self._head(diverted):
                    return
                if diverted.answer is not None:
                    diverted.answer.release()
                self._conclusion.switch(diverted.leg, reader.response, reader.head, data[at:])
                return
            else:
                self._state.then_wire = reader.anomaly or _UNSOLICITED
                self.fail(diverted, b"502 Bad Gateway", self._what_is_wrong())
                return

    def _head_came(self, diverted: DivertedRequest, event: int) -> bool:
        """Pass on an informational head, or the final one. False: the response was refused."""
        if event == messages.FINAL:
            _answer_begins(diverted)
            return self._head(diverted)
        judged, head = diverted.judged, diverted.reader.head
        if judged is not None:
            judged.response_interim(response_fields(head))
            if judged.refusal is not None:
                self._refuse(diverted, judged, has_begun=False)
                return False
        self._host.client.write(head)
        return True

    def _head(self, diverted: DivertedRequest) -> bool:
        """Pass on the final head of a response. False: it was refused."""
        judged, reader = diverted.judged, diverted.reader
        if self._inspection is None or judged is None or not judged.reads_response:
            self._host.client.write(reader.head)
            return True
        diverted.answer = answer = self._inspection.begin(judged)
        if judged.awaits_response_verdict:
            judged.firewall_response.call_when_answered(partial(self._judged, diverted, answer))
        diverted.answer.head(reader.head, reader.response, self._host.now)
        self._inspection.arm(self._host)
        return not self._refused(diverted)

    def _body(self, diverted: DivertedRequest, piece: bytes) -> bool:
        """Pass on the next bytes of a response. False: it was refused."""
        if diverted.answer is None:
            self._host.client.write(piece)
            return True
        diverted.answer.body(piece)
        return not self._refused(diverted)

    def _refused(self, diverted: DivertedRequest) -> bool:
        """If inspection has refused the response, answer in its place, or break off what has begun."""
        answer = diverted.answer
        if answer is None or answer.judged.refusal is None:
            return False
        self._refuse(diverted, answer.judged, has_begun=answer.begun)
        return True

    def _refuse(self, diverted: DivertedRequest, judged: Judged, *, has_begun: bool) -> None:
        if self._inspection is not None:
            self._inspection.forget()
        self._peers.drop_handler(diverted.leg, Ending.ABORT)
        self._feed.cut_all()
        if has_begun:
            self._conclusion.end(Ending.ABORT)
        else:
            diverted.answered = diverted.close = True
            self._host.client.write(refused(judged, diverted.request.flags, close=True))
            self.finish(diverted)

    def _what_is_wrong(self) -> str:
        if self._state.then_wire == _UNSOLICITED:
            return "the handler switches to a protocol that it was not offered"
        if self._state.then_wire == TOO_LARGE:
            return f"the head of the handler's response is larger than {self._limits.head >> 10} KiB"
        return "the handler's response is not well-formed"

    def _answered(self, diverted: DivertedRequest, *, clean: bool) -> None:
        """The handler's response is whole."""
        if diverted.answer is not None:
            diverted.answer.end()
            if self._refused(diverted):
                return
            if diverted.answer.is_waiting:
                diverted.is_clean = clean
                return
        self._delivered(diverted, clean=clean)

    def _judged(self, diverted: DivertedRequest, answer: InspectedAnswer) -> None:
        """The firewall has judged the handler's response, or will not: give it to the client, or refuse it."""
        if self._state.diverted is not diverted or self._state.client is OVER or self._refused(diverted):
            return
        if answer.is_waiting:
            answer.go_on()
            self._delivered(diverted, clean=diverted.is_clean)
        elif not answer.judged.holds_response:
            answer.release()

    def _delivered(self, diverted: DivertedRequest, *, clean: bool) -> None:
        """The client has been given the handler's response."""
        if diverted.answer is not None and self._inspection is not None:
            self._inspection.answer = None
        diverted.answered = True
        self._feed.answered(diverted.mirrored)
        if not clean or diverted.close:
            self._peers.drop_handler(diverted.leg, Ending.CLOSE if clean else Ending.ABORT)
        if diverted.sent or diverted.close or self._state.client_ended:
            self.finish(diverted)
            self._host.proceed()

    def finish(self, diverted: DivertedRequest) -> None:
        """The request is answered on both sides, or as far as it will go."""
        state = self._state
        state.diverted = None
        state.answering_leg = None
        if diverted.sample is not None and self._inspection is not None and self._inspection.samples is not None:
            self._inspection.samples.finished(diverted.sample)
        if diverted.close or not diverted.sent:
            self._farewell(diverted)
        elif state.then_wire is not None:
            self._conclusion.become_wire(state.then_wire)

    def _farewell(self, diverted: DivertedRequest) -> None:
        """Nothing more is served on this connection."""
        state = self._state
        if state.client_ended or (diverted.sent and not state.unread):
            self._conclusion.end(Ending.CLOSE)
        else:
            self._conclusion.discard()

    def leg_gone(self, leg: Leg, *, orderly: bool) -> None:
        """A handler leg ended, broke or never came to be."""
        self._peers.drop_handler(leg, Ending.CLOSE if orderly else Ending.ABORT)
        diverted = self._state.diverted
        if diverted is None or diverted.leg is not leg or diverted.answered or diverted.is_waiting:
            return
        if orderly and diverted.reader.ends_with_connection:
            self._answered(diverted, clean=True)
        elif not diverted.replayable:
            self.fail(diverted, b"502 Bad Gateway", "the handler went away before it had answered")
        elif diverted.reused:
            diverted.move(self._peers.handler(diverted.rule)[0])
            self._state.answering_leg = diverted.leg
        else:
            self.fall_back(diverted)
            self._host.proceed()

    def fall_back(self, diverted: DivertedRequest) -> None:
        """The app answers what no handler will."""
        state = self._state
        state.diverted = None
        app = state.answering_leg = self._peers.ask_app()
        flags = diverted.request.flags & ANSWER_FLAGS | self._feed.expect(diverted.mirrored)
        if self._inspection is not None:
            flags |= self._inspection.expect(diverted.judged, len(diverted.head))
            if self._inspection.samples is not None:
                flags |= self._inspection.samples.expect(diverted.sample)
        state.awaited.append(flags)
        for data in (diverted.head, *diverted.kept):
            app.write(data)
        self._early.send()
        if state.then_wire is not None:
            self._conclusion.become_wire(state.then_wire)

    def fail(self, diverted: DivertedRequest, status: bytes, reason: str) -> None:
        """The handler cannot answer any more and neither can the app: say so, or break what has begun."""
        self._peers.drop_handler(diverted.leg, Ending.ABORT)
        if diverted.begun and not diverted.answered:
            self._conclusion.end(Ending.ABORT)
            return
        if not diverted.sent or diverted.given_early or diverted.request.flags & HTTP_1_0:
            diverted.close = True
        if not diverted.answered:
            answer = own_answer(diverted, status, reason)
            self._host.client.write(answer)
            self._feed.own_answer(diverted.mirrored, answer, self._host.now)
        self.finish(diverted)
        self._host.proceed()


def _note_sample(diverted: DivertedRequest, reader: ResponseReader) -> None:
    """Note what was read of the answer to a sampled request."""
    if diverted.sample is not None:
        diverted.sample.follow(reader, diverted.request.flags)


def _answer_begins(diverted: DivertedRequest) -> None:
    diverted.begun = True
    response = diverted.reader.response
    if response is not None and (
        response.close
        or diverted.given_early
        or diverted.reader.ends_with_connection
        or (diverted.request.flags & HTTP_1_0 and not response.keeps)
    ):
        diverted.close = True
