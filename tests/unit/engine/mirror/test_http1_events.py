"""What an HTTP/1 relay tells its mirror of both directions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.mirror.events import (
    BODY,
    HEAD,
    RESPONSE,
    RESPONSE_HEAD,
    Anomaly,
    Answerer,
    ConnectionEnd,
    ExchangeCut,
    Gap,
    ProtocolSwitched,
    RequestData,
    RequestDiverted,
    RequestEnd,
    ResponseData,
    ResponseEnd,
)
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.relay import OnUnreadable
from sidestep.policy.route import Route, SteeredPort
from tests.effort import examples
from tests.unit.engine.mirror.recording import EVERYTHING, recorded
from tests.unit.engine.mirror.test_http1_copies import (
    BODY as CHUNKS,
)
from tests.unit.engine.mirror.test_http1_copies import (
    CHUNKED,
    OK,
    POST,
    SWITCHING,
    TAP,
    UPGRADE,
    A,
    T,
)
from tests.unit.engine.shell import Shell, everything

HEAD_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CHUNKED_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = ["RequestHead", "ResponseHead", "ResponseData", "ResponseEnd"]


def scene(*rules, interest=EVERYTHING, **options):
    mirror, recorder = recorded(interest)
    relay = Http1Relay(SteeredPort(80, Route(rules, (TAP,))), tls=False, mirror=mirror)
    return Shell(relay, **options), recorder


def test_both_directions_of_requests_on_a_connection_that_is_kept():
    shell, recorder = scene()
    shell.now = 7.0
    for request in (A, T, A, T):
        shell.client(request)
        shell.app(OK)
    assert recorder.offered == [1, 2]
    assert recorder.kinds() == WHOLE * 2
    head, answer = recorder.head(1), recorder.answers(1)[0]
    assert (head.method, head.target, head.authority, head.raw, head.ends) == (b"GET", b"/t", b"app.test", T, True)
    assert (answer.status, answer.raw, answer.by, answer.is_interim) == (200, HEAD_OK, Answerer.APP, False)
    assert (head.at, answer.at) == (7.0, 7.0)
    assert recorder.data(ResponseData, 2) == b"ok"
    assert (shell.to_app, shell.to_client) == (A + T + A + T, OK * 4)


def test_who_listens_to_answers_sees_each_on_a_connection_that_passes():
    shell, recorder = scene(app_open=True)
    for _ in range(3):
        shell.client(T)
        shell.app(OK[:-1])
        shell.app(OK[-1:])
        shell.client(A)
        shell.app(OK)
    assert [recorder.data(ResponseData, number) for number in (1, 2, 3)] == [b"ok"] * 3
    assert [recorder.kinds(number)[-1] for number in (1, 2, 3)] == ["ResponseEnd"] * 3
    assert shell.to_client == OK * 6


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=20), st.booleans())
@settings(max_examples=examples(100), deadline=None)
def test_however_bytes_are_cut_events_carry_them_all(cuts, diverted):
    requests = T + CHUNKED + CHUNKS + A + POST % 5 + b"01234" + T
    answers = [CHUNKED_OK + CHUNKS, b"HTTP/1.1 100 Continue\r\n\r\n" + OK, OK, b"HTTP/1.1 204 No\r\n\r\n", OK]
    shell, recorder = scene(*([everything()] if diverted else []))
    at = 0
    for cut, _ in [*cuts, (len(requests), 0)]:
        if requests[at : at + cut]:
            shell.client(requests[at : at + cut])
        at += cut
    said = list(answers)
    for _, cut in cuts:
        if said and not diverted:
            piece, said[0] = said[0][:cut], said[0][cut:]
            if piece:
                shell.app(piece)
            if not said[0]:
                said.pop(0)
    for rest in said:
        if rest:
            (shell.handler if diverted else shell.app)(rest)
    assert shell.to_client == b"".join(answers)
    assert recorder.offered == [1, 2, 3, 4]
    told = [
        b"".join(
            getattr(event, "raw", None) or getattr(event, "data", b"")
            for event in recorder.of(number)
            if type(event).__name__.startswith("Response")
        )
        for number in (1, 2, 3, 4)
    ]
    assert told == [answers[0], answers[1], answers[3], answers[4]]
    assert [recorder.head(number).raw for number in (1, 2, 3, 4)] == [T, CHUNKED, POST % 5, T]
    assert recorder.data(RequestData, 2) == CHUNKS
    assert recorder.data(RequestData, 3) == b"01234"
    by = Answerer.HANDLER if diverted else Answerer.APP
    assert {answer.by for number in (1, 2, 3, 4) for answer in recorder.answers(number)} == {by}
    assert not any(isinstance(event, ExchangeCut) for event in recorder.events)
    assert not shell.mirror.requests
    assert not shell.mirror.responses


def test_pipelined_requests_are_told_before_their_answers_and_these_in_order():
    shell, recorder = scene()
    shell.client(T * 3)
    shell.app(OK + HEAD_OK)
    shell.app(b"ko" + OK)
    assert [recorder.data(ResponseData, number) for number in (1, 2, 3)] == [b"ok", b"ko", b"ok"]
    assert recorder.kinds() == ["RequestHead", *WHOLE[1:] * 3]


def test_an_interim_head_precedes_the_final_one():
    shell, recorder = scene()
    shell.client(POST % 2)
    shell.app(b"HTTP/1.1 100 Continue\r\n\r\n")
    shell.client(b"hi")
    shell.app(OK)
    assert [(answer.status, answer.is_interim) for answer in recorder.answers(1)] == [(100, True), (200, False)]
    assert recorder.kinds(1) == ["RequestHead", "ResponseHead", "RequestData", "RequestEnd", *WHOLE[1:]]


@pytest.mark.parametrize("diverted", [False, True])
def test_after_a_switch_the_bytes_of_both_sides_are_told(diverted):
    shell, recorder = scene(*([everything()] if diverted else []))
    answering = shell.handler if diverted else shell.app
    shell.client(UPGRADE + b"early")
    answering(SWITCHING + b"first")
    shell.client(b"ping")
    answering(b"pong")
    assert shell.relay.wired is None
    shell.eof(shell.relay.client)
    shell.eof(shell.relay.wired[1] if shell.relay.wired else (shell.handlers[-1] if diverted else shell.relay.app))
    assert ProtocolSwitched(1, b"websocket") in recorder.events
    assert recorder.data(RequestData, 1) == b"earlyping"
    assert recorder.data(ResponseData, 1).endswith(b"pong")
    assert RequestEnd(1) in recorder.events
    assert recorder.events[-1] == ResponseEnd(1)
    assert recorder.answers(1)[0].status == 101


def test_a_refused_upgrade_ends_the_request():
    shell, recorder = scene()
    shell.client(UPGRADE)
    assert recorder.kinds(1) == ["RequestHead"]
    shell.app(OK)
    assert recorder.kinds(1) == [*WHOLE, "RequestEnd"]


def test_who_is_diverted_is_told_and_answered_by_the_handler():
    shell, recorder = scene(everything())
    shell.client(T)
    shell.handler(OK)
    assert recorder.kinds(1) == ["RequestHead", "RequestDiverted", *WHOLE[1:]]
    (diverted,) = (event for event in recorder.events if isinstance(event, RequestDiverted))
    assert (diverted.rule.uid, diverted.target) == ("uid-dev", b"/t")
    assert recorder.answers(1)[0].by is Answerer.HANDLER


def test_who_falls_back_is_answered_by_the_app():
    shell, recorder = scene(everything(), auto=False)
    shell.client(T)
    shell.refuse(shell.handlers[0])
    shell.open(shell.relay.app)
    shell.app(OK)
    assert recorder.answers(1)[0].by is Answerer.APP
    assert recorder.kinds(1) == WHOLE


def test_an_answer_of_our_own_is_told_as_such():
    shell, recorder = scene(everything())
    shell.client(POST % 4 + b"ab")
    shell.lose(shell.handlers[0])
    (answer,) = recorder.answers(1)
    assert (answer.by, answer.status) == (Answerer.SIDESTEP, 502)
    assert recorder.data(ResponseData, 1).startswith(b"sidestep: ")
    assert answer.raw + recorder.data(ResponseData, 1) == shell.to_client


@pytest.mark.parametrize("end", ["client lost", "client ends", "broken chunk", "app ends", "unsolicited"])
def test_what_is_not_whole_is_cut(end):
    shell, recorder = scene()
    shell.client(CHUNKED + b"5\r\nhel")
    match end:
        case "client lost":
            shell.lose(shell.relay.client)
        case "client ends":
            shell.eof(shell.relay.client)
        case "broken chunk":
            shell.client(b"lo!!")
        case "app ends":
            shell.eof(shell.relay.app)
        case "unsolicited":
            shell.app(OK + OK)
    assert sum(isinstance(event, ExchangeCut) for event in recorder.events) == 1
    assert not shell.mirror.is_listening


def test_an_answer_to_the_end_of_the_connection_is_told_to_its_end():
    shell, recorder = scene()
    shell.client(T)
    shell.app(b"HTTP/1.1 200 OK\r\n\r\nsome")
    shell.app(b" more")
    assert shell.relay.wired is None  # the kernel may not move what somebody listens to
    shell.eof(shell.relay.app)
    assert recorder.data(ResponseData, 1) == b"some more"
    assert recorder.events[-1] == ResponseEnd(1)


def test_the_answer_to_an_upgrade_is_told_although_the_client_has_finished():
    shell, recorder = scene(everything(), interest=HEAD | RESPONSE)
    shell.client(UPGRADE)
    shell.eof(shell.relay.client)
    shell.handler(OK)
    assert shell.to_client == OK
    assert recorder.kinds(1) == ["RequestHead", "RequestDiverted", "ResponseHead", "ResponseData", "ResponseEnd"]


def test_a_switch_that_a_handler_may_not_choose_is_not_told_as_its_answer():
    shell, recorder = scene(everything())
    shell.client(T)
    shell.handler(SWITCHING)
    assert shell.to_client.startswith(b"HTTP/1.1 502 ")
    assert [(answer.by, answer.status) for answer in recorder.answers(1)] == [(Answerer.SIDESTEP, 502)]


@pytest.mark.parametrize("closes", [False, True])
def test_a_switch_that_nobody_asked_for_cuts_all_exchanges(closes):
    mirror, recorder = recorded(HEAD | RESPONSE)
    options = {"on_unreadable": OnUnreadable.CLOSE} if closes else {}
    shell = Shell(Http1Relay(SteeredPort(80, Route((), (TAP,))), tls=False, mirror=mirror, **options))
    shell.client(T + UPGRADE)
    shell.app(SWITCHING)  # answers the first one
    assert shell.relay.anomaly == "h1-response-unsolicited-switch"
    assert ResponseEnd(2) not in recorder.events
    assert recorder.kinds(1) == ["RequestHead", "ResponseHead", "ExchangeCut"]
    assert recorder.kinds(2) == ["RequestHead", "ExchangeCut"]
    assert (shell.relay.done, shell.relay.wired is None) == (closes, closes)
    if not closes:
        shell.client(b"raw")
    assert shell.to_app == T + UPGRADE + (b"" if closes else b"raw")


def test_what_cannot_be_read_is_an_anomaly():
    shell, recorder = scene()
    shell.client(T)
    shell.app(OK)
    shell.client(b"GET /t HTTP/1.1\r\n folded\r\n\r\n")
    assert [type(event) for event in recorder.events][-1] is Anomaly
    assert recorder.events[-1].reason == shell.relay.anomaly


def test_the_end_of_a_connection_is_told_once():
    shell, recorder = scene()
    shell.client(T)
    shell.lose(shell.relay.client)
    shell.relay.farewell()
    shell.relay.farewell()
    shell.copy()
    assert recorder.kinds() == ["RequestHead", "ExchangeCut", "ConnectionEnd"]
    assert recorder.events.count(ConnectionEnd()) == 1


@pytest.mark.parametrize(
    ("interest", "kinds"),
    [
        (0, []),
        (HEAD, ["RequestHead"]),
        (HEAD | BODY, ["RequestHead", "RequestData", "RequestEnd"]),
        (HEAD | RESPONSE_HEAD, ["RequestHead", "WholeResponse"]),
    ],
)
def test_a_sink_is_told_what_it_wants_and_nothing_else(interest, kinds):
    shell, recorder = scene(interest=interest)
    shell.client(POST % 2 + b"hi")
    shell.app(OK)
    assert recorder.kinds() == kinds
    assert not shell.mirror.is_listening


def test_without_a_listener_there_is_neither_queue_nor_sink():
    made = []

    def make(mirror):
        made.append(mirror)
        return ()

    mirror = Mirror(make)
    shell = Shell(Http1Relay(SteeredPort(80, Route((), (TAP,))), tls=False, mirror=mirror), app_open=True)
    shell.client(A + POST.replace(b"X-Dev: tap\r\n", b"") % 2 + b"hi")
    shell.app(OK + OK)
    shell.relay.farewell()
    assert mirror.queue is None
    assert not made


def test_a_flood_overflows_into_a_gap_and_the_exchange_is_given_up():
    mirror, recorder = recorded(may_catch_up=lambda: False)
    shell = Shell(Http1Relay(SteeredPort(80, Route((), (TAP,))), tls=False, mirror=mirror), app_open=True)
    shell.late = True
    shell.client(POST % 400_000)
    for _ in range(40):
        shell.client(b"x" * 10_000)
    assert shell.to_app == POST % 400_000 + b"x" * 400_000
    assert not mirror.is_listening
    shell.client(T)  # finds no room for its head
    shell.copy()
    (gap,) = recorder.gaps
    assert gap == Gap(events=2, size=10_000 + len(T), exchanges={1, 2})
    assert recorder.missed_heads == [2]
    assert recorder.kinds(1) == ["RequestHead", "RequestData"]
    shell.app(OK + OK)
    shell.client(T)  # there is room again
    shell.copy()
    assert recorder.head(3).raw == T


def test_what_a_sink_releases_is_told_no_more():
    shell, recorder = scene(interest=HEAD | BODY)
    shell.client(POST % 4 + b"a")
    recorder.released.add(1)
    shell.mirror.release(1)
    shell.client(b"bcd")
    assert recorder.data(RequestData, 1) == b"a"
    assert recorder.kinds(1) == ["RequestHead", "RequestData"]
