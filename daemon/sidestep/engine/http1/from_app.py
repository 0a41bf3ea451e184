"""The app's half of the relay: what it says is forwarded before it is understood, then watched message by message.

Reading it tells which requests are answered, so that later ones may go elsewhere. What cannot be read, answers nothing,
or ends with the connection makes the connection a wire: the client has the bytes already.

While an answer to an inspected exchange is expected (`Http1Inspection.answers`), bytes are written as they are
understood instead, because that answer may be replaced. One that ends with the connection is read to its end. Where a
policy closes, the client does not get what cannot be read of it, nor what no request has asked for.

A whole answer that the firewall has yet to judge stops all that (`Http1Inspection.paused`): nothing more is read of the
app, and the end of its connection is noted, until the verdict has come.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from sidestep.engine.http1.feed import LISTENED_TO, Http1Feed
from sidestep.engine.http1.inspected_answer import refused
from sidestep.engine.http1.inspection import INSPECTED, WEBSOCKET, Http1Inspection
from sidestep.engine.http1.samples import SAMPLED
from sidestep.engine.http1.state import HELD_BACK, OVER, SERVED
from sidestep.engine.leg import Ending
from sidestep.engine.mirror.events import Answerer
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.h2c_upgrade import TOKEN
from sidestep.protocols.http1 import SWITCHES
from sidestep.protocols.http1_response_head import response_fields

if TYPE_CHECKING:
    from sidestep.engine.http1.conclusion import Conclusion
    from sidestep.engine.http1.early_data import EarlyData
    from sidestep.engine.http1.from_client import FromClient
    from sidestep.engine.http1.inspected_answer import InspectedAnswer
    from sidestep.engine.http1.peers import Peers
    from sidestep.engine.http1.state import ConnectionState
    from sidestep.engine.relay import Relay
    from sidestep.protocols.http1_response_head import ResponseHead

_TOLD: Final = LISTENED_TO | SAMPLED
"""Flags of a pending answer that is told to somebody."""
_LAST: Final = frozenset((messages.BROKEN, messages.SWITCH))
"""Events after which the rest of a chunk is not read as responses."""
_UNREAD: Final = frozenset((messages.BROKEN, messages.COMPLETE))
"""Events after which, where a policy closes, nothing of a chunk goes to the client."""
_LAST_HEADS: Final = frozenset((messages.FINAL, messages.SWITCH))


class FromApp:
    """See the module."""

    __slots__ = (
        "_app_ended", "_conclusion", "_early", "_feed", "_from_client", "_inspection", "_peers", "_relay", "_state",
        "_watches",
    )  # fmt: skip

    def __init__(
        self,
        relay: Relay,
        state: ConnectionState,
        peers: Peers,
        feed: Http1Feed,
        early: EarlyData,
        from_client: FromClient,
        conclusion: Conclusion,
        inspection: Http1Inspection | None = None,
    ) -> None:
        self._relay = relay
        self._state = state
        self._peers = peers
        self._feed = feed
        self._early = early
        self._from_client = from_client
        self._conclusion = conclusion
        self._inspection = inspection
        self._watches = False
        """What is read now is written as it is understood, because an answer in it is judged."""
        self._app_ended = False
        """The app has ended its connection while an answer waits for its verdict."""

    def read(self, data: bytes) -> None:
        """Take bytes that answer requests."""
        inspection = self._inspection
        if inspection is not None and inspection.paused is not None:
            inspection.behind += data
            return
        watched = self._watches = inspection is not None and bool(inspection.answers)
        if not watched:
            self._relay.client.write(data)
        self._follow(data)
        if inspection is not None:
            self._read_on(inspection, watched=watched)

    def _read_on(self, inspection: Http1Inspection, *, watched: bool) -> None:
        inspection.arm(self._relay)
        if watched and not inspection.answers and self._state.client_ended and self._state.client in SERVED:
            self._from_client.pass_end()  # which waited for these answers

    def _judged(self, inspection: Http1Inspection, answer: InspectedAnswer) -> None:
        """The firewall has judged an answer, or will not: give the client what is held of it, or refuse it."""
        read, behind = inspection.paused, inspection.behind
        if inspection.answer is not answer or self._state.client is OVER:
            return
        inspection.paused, inspection.behind = None, b""
        if answer.judged.refusal is not None:
            self._refuse(inspection)
            return
        if read is None:
            if not answer.judged.holds_response:
                answer.release()
            return
        answer.go_on()
        if self._peers.responses.event == messages.COMPLETE:
            self._answered(inspection, behind)
            if self._event(self._state.awaited[0], read, behind):
                self._follow(behind)
        else:
            inspection.answered()  # it ended with the connection
        self._read_on(inspection, watched=True)
        if self._app_ended:
            self._relay.receive_eof(self._relay.app, self._relay.now)

    def _follow(self, data: bytes) -> None:
        state = self._state
        reader = self._peers.responses
        awaited = state.awaited
        at = 0
        while at < len(data) or reader.event == messages.FINAL:
            if not awaited:
                self._conclusion.become_wire("h1-unsolicited-response")
                return
            flags, start = awaited[0], at
            at = reader.read(data, start, flags)
            if self._watches and not self._take(flags, data, start, at):
                return
            if not self._event(flags, data[start:at], data[at:]):
                return
        if state.client in HELD_BACK and not awaited:
            self._from_client.proceed()

    def _event(self, flags: int, read: bytes, rest: bytes) -> bool:
        """What follows from what was read of the answer to a request of these flags; `rest` is behind it.

        False: nothing more is read of answers.
        """
        state = self._state
        reader = self._peers.responses
        event = reader.event
        if flags & _TOLD:
            self._tell(flags, read)
        if event == messages.COMPLETE:
            if state.awaited.popleft() & LISTENED_TO:
                self._feed.answered(self._feed.answering)
            if reader.response is None or reader.response.close:
                self._conclusion.become_wire(None)  # the app closes; the client knows
                return False
            if state.early and not state.awaited:
                self._early.read_as_requests()
                return state.client in SERVED
        elif event == messages.SWITCH:
            self._switch(flags, reader.response, rest)
            return False
        elif event == messages.BROKEN:
            self._conclusion.become_wire(reader.anomaly)
            return False
        elif reader.ends_with_connection and not flags & INSPECTED:
            self._conclusion.become_wire(None, listened=self._goes_on(flags, rest))
            return False
        return True

    def _tell(self, flags: int, data: bytes) -> None:
        """Tell those who listen what a reading of `data` has got of the answer to a request of these flags."""
        reader = self._peers.responses
        if flags & SAMPLED and self._inspection is not None and self._inspection.samples is not None:
            self._inspection.samples.read(reader, flags)
        if flags & LISTENED_TO:
            self._feed.read(self._feed.answering, Answerer.APP, reader, data, self._relay.now)

    def _take(self, flags: int, data: bytes, start: int, at: int) -> bool:
        """Write what a reading of `data` from `start` to `at` has got, or hold it. False: the answer was refused."""
        client = self._relay.client
        inspection = self._inspection
        reader = self._peers.responses
        event = reader.event
        assert inspection is not None  # noqa: S101 - nobody else watches
        if not flags & INSPECTED:
            if event == messages.COMPLETE:
                is_last = reader.response is None or reader.response.close
            else:
                is_last = event in _LAST or reader.ends_with_connection
            closes = inspection.gate.closes
            piece = data[start:] if is_last and not (closes and event in _UNREAD) else data[start:at]
            if piece and not (closes and event == messages.BROKEN):
                client.write(piece)
        elif event in _LAST_HEADS:
            return self._take_head(inspection, data, at)
        elif event == messages.BROKEN:
            if inspection.answer is not None:
                inspection.answer.judged.response_end(is_whole=False)
                if inspection.answer.judged.refusal is not None:
                    self._refuse(inspection)
                    return False
            if inspection.gate.closes:
                inspection.forget()  # nobody gets what cannot be read
            else:
                inspection.release()
                client.write(reader.take_kept() + data[start:])
        elif event == messages.INTERIM:
            judged = inspection.first()
            judged.response_interim(response_fields(reader.head))
            if judged.refusal is not None:
                self._refuse(inspection)
                return False
            client.write(reader.head)
        elif not reader.in_head and inspection.answer is not None:
            return self._take_body(inspection, inspection.answer, data, start, at)
        return True

    def _take_body(
        self, inspection: Http1Inspection, answer: InspectedAnswer, data: bytes, start: int, at: int
    ) -> bool:
        """The same for bytes of the body, or its end."""
        ends = self._peers.responses.event == messages.COMPLETE
        if at > start:
            answer.body(data[start:at])
        if ends and answer.judged.refusal is None:
            answer.end()
        if answer.judged.refusal is not None:
            self._refuse(inspection)
            return False
        if answer.is_waiting:
            inspection.paused, inspection.behind = data[start:at], data[at:]
            return False
        if ends:
            self._answered(inspection, data[at:])
        return True

    def _answered(self, inspection: Http1Inspection, rest: bytes) -> None:
        """The first of the answers that are judged has gone to the client; `rest` has come behind it."""
        inspection.answered()
        self._watches = bool(inspection.answers)
        is_asked_for = len(self._state.awaited) > 1 or not inspection.gate.closes
        if not self._watches and rest and is_asked_for:
            self._relay.client.write(rest)

    def _take_head(self, inspection: Http1Inspection, data: bytes, at: int) -> bool:
        """The same for the head of a final answer, or of one that switches protocols."""
        reader = self._peers.responses
        if reader.event == messages.SWITCH and reader.response is not None and reader.response.upgrade == TOKEN:
            inspection.upgrading = inspection.first()  # its answer follows, over HTTP/2
            inspection.answered()
            client = self._relay.client
            client.write(reader.head)
            if at < len(data) and not inspection.gate.closes:
                client.write(data[at:])
            return True
        answer = inspection.begin(inspection.first())
        if answer.judged.awaits_response_verdict:
            answer.judged.firewall_response.call_when_answered(partial(self._judged, inspection, answer))
        answer.head(reader.head, reader.response, self._relay.now)
        if answer.judged.refusal is not None:
            self._refuse(inspection)
            return False
        if reader.event == messages.SWITCH:
            answer.release()
            inspection.answered()
            # Where a policy closes, what follows goes to the client only if it is not to be read.
            if at < len(data) and not _is_websocket(reader.response) and not inspection.gate.closes:
                self._relay.client.write(data[at:])
        return True

    def _refuse(self, inspection: Http1Inspection) -> None:
        """Answer in the place of the app, or break off what has begun."""
        state = self._state
        judged, flags = inspection.first(), state.awaited[0]
        has_begun = inspection.answer is not None and inspection.answer.begun
        inspection.forget()
        if has_begun:
            self._conclusion.end(Ending.ABORT)
            return
        self._relay.client.write(refused(judged, flags, close=True))
        state.awaited.clear()
        state.answering_leg = None
        if state.client_ended:
            self._conclusion.end(Ending.CLOSE)
        else:
            self._conclusion.discard()

    def finish(self) -> bool:
        """The app has ended its connection, and with it the answer that is judged.

        Returns whether that was refused, or waits for its verdict.
        """
        inspection = self._inspection
        if inspection is not None and inspection.paused is not None:
            self._app_ended = True
            return True
        if inspection is None or not inspection.answers or inspection.answer is None:
            return False
        answer = inspection.answer
        answer.end()
        if answer.judged.refusal is not None:
            self._refuse(inspection)
            return True
        if answer.is_waiting:
            self._app_ended = True
            inspection.paused = b""
            return True
        inspection.answered()
        return False

    def _switch(self, flags: int, response: ResponseHead | None, rest: bytes) -> None:
        """The app speaks another protocol from here on, as the request of these flags asks for, or as none does."""
        unsent = rest if self._watches and flags & INSPECTED and _is_websocket(response) else b""
        if not flags & SWITCHES:
            if unsent:
                self._relay.client.write(unsent)
            self._conclusion.become_wire("h1-response-unsolicited-switch")
        elif not self._conclusion.hand_over(response, rest):
            self._conclusion.switch(self._relay.app, response, self._peers.responses.head, unsent)

    def _goes_on(self, flags: int, body: bytes) -> int:
        """The response lasts to the end of the connection: its exchange, 0 if nobody listens."""
        if not flags & LISTENED_TO:
            return 0
        exchange = self._feed.answering
        if body:
            self._relay.mirror.response_data(exchange, body)
        return exchange

    def read_unasked(self, data: bytes) -> None:
        """Take bytes that answer no request."""
        state = self._state
        if state.client not in SERVED:
            return
        if state.app_bypassed:
            self._peers.retire_app()
        else:
            if self._inspection is None or not self._inspection.gate.closes:
                self._relay.client.write(data)
            self._conclusion.become_wire("h1-unsolicited-response")


def _is_websocket(response: ResponseHead | None) -> bool:
    """Whether an answer switches to a protocol whose messages may be judged: what follows it is passed on later."""
    return response is not None and response.upgrade == WEBSOCKET
