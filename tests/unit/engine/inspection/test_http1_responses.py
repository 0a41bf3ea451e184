"""Answers on an inspected HTTP/1 connection, of the app and of handlers: held, replaced, broken off."""

import gzip

import pytest

from sidestep.engine.inspection.limits import InspectionLimits
from sidestep.engine.leg import Ending
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.inspection import Action, Direction, Match, Pattern, Rule
from sidestep.policy.route import Route
from tests.harness.table import each_row
from tests.unit.engine.hostile_heads import HOSTILE_RESPONSES
from tests.unit.engine.inspection.inspecting import (
    BLOCKED,
    DETECT,
    ENFORCE,
    FAIL,
    NO_LEAK,
    SECRET,
    Inspected,
    answer,
    chunked,
    get,
    path,
    post,
)
from tests.unit.engine.shell import everything

GET = get()
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
LEAKY_HEAD = Rule(
    "no-debug",
    Action.BLOCK,
    Direction.RESPONSE,
    match=Match(Filter((HeaderCondition("x-debug", HeaderTest.PRESENT),))),
)


def pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.fixture(params=["app", "handler"])
def asked(request):
    """A shell on which a request is being answered, and who answers."""

    def ask(*rules, said=GET, **policy):
        route = Route((everything(),)) if request.param == "handler" else Route()
        shell = Inspected(*rules, route=route, **policy)
        shell.client(said)
        return shell, getattr(shell, request.param)

    return ask


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("cut", [1, 11, 1 << 20])
def test_an_answer_is_held_until_there_is_a_verdict(asked, chunk, cut):
    for body in (b"harmless " * 9, b"first " + SECRET + b" last"):
        shell, say = asked(NO_LEAK)
        for piece in pieces(INTERIM + answer(body, chunk=chunk), cut):
            say(piece)
            if shell.relay.client.ending:
                break
            assert shell.to_client in (b"", INTERIM, INTERIM + answer(body, chunk=chunk))
        if SECRET in body:
            assert shell.to_client.startswith(INTERIM + b"HTTP/1.1 403 Forbidden\r\n")
            assert shell.to_client.endswith(b"\r\n\r\n" + BLOCKED)
            assert shell.relay.client.ending
        else:
            assert shell.to_client == INTERIM + answer(body, chunk=chunk)
            assert shell.relay.idle


def test_a_rule_about_the_head(asked):
    for fields, refused in (((), False), ((b"X-Debug: 1",), True)):
        shell, say = asked(LEAKY_HEAD)
        say(answer(b"ok", *fields))
        assert (b" 403 " in shell.to_client) is refused
        if not refused:
            assert shell.to_client == answer(b"ok")


def test_an_answer_that_no_rule_can_block_any_more_is_not_held(asked):
    shell, say = asked(LEAKY_HEAD)
    say(answer(b"0123456789")[:-4])
    assert shell.to_client == answer(b"0123456789")[:-4]


def test_an_answer_to_head_has_no_body(asked):
    shell, say = asked(NO_LEAK, said=GET.replace(b"GET", b"HEAD"))
    say(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Encoding: br\r\n\r\n")
    assert shell.to_client.endswith(b"br\r\n\r\n")
    assert shell.seen.reasons == []


@pytest.mark.parametrize(
    "kind", [b"text/event-stream", b"application/grpc-web", b"multipart/x-mixed-replace; boundary=x"]
)
def test_a_stream_is_never_held_and_broken_off(asked, kind):
    shell, say = asked(NO_LEAK)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind
    text = SECRET + b"!" * 64  # the end of a text is not searched at every byte
    body = b"%x\r\n%b\r\n" % (len(text), text)
    say(head)
    assert shell.to_client == head
    say(body[:9])
    assert shell.to_client == head + body[:9]
    say(body[9:])
    assert shell.to_client == head + body[:9]
    assert shell.shut[shell.relay.client] is Ending.ABORT


def test_a_long_answer_is_released_at_the_window_and_read_on(asked):
    shell, say = asked(NO_LEAK, limits=InspectionLimits(window=1000))
    said = answer(b"a" * 1500 + SECRET + b"b" * 100)
    say(said[:1000])
    assert shell.to_client == b""
    say(said[1000:1400])
    assert shell.to_client == said[:1400]
    say(said[1400:])
    assert shell.to_client == said[:1400]
    assert shell.shut[shell.relay.client] is Ending.ABORT
    assert shell.seen.reasons == []


def test_an_answer_without_a_length_is_held_for_a_while(asked):
    shell, say = asked(NO_LEAK)
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"harmless", 4)
    say(said[:60])
    assert shell.to_client == b""
    assert shell.relay.deadline == 1.0
    shell.client(get(b"/half")[:9])
    shell.expire()
    assert shell.to_client == said[:60]
    assert shell.relay.deadline == 1.0 + 60.0  # of the head that has begun
    say(said[60:])
    assert shell.to_client == said


@pytest.mark.parametrize("body", [b"harmless", b"x" + SECRET])
def test_an_answer_that_ends_with_the_connection(asked, body):
    shell, say = asked(NO_LEAK)
    say(UNTIL_CLOSE + body[:4])
    say(body[4:])
    leg = shell.handlers[0] if shell.handlers else shell.relay.app
    assert shell.to_client == b""
    shell.eof(leg)
    if SECRET not in body:
        assert shell.to_client == UNTIL_CLOSE + body
    else:
        assert shell.to_client.startswith(b"HTTP/1.1 403 ")
    assert shell.relay.client.ending


@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize("policy", [ENFORCE, FAIL, DETECT], ids=["Ignore", "Fail", "Detect"])
def test_an_answer_that_the_app_cuts(secret, policy):
    said = answer(SECRET if secret else b"harmless", b"X: 1")[:-1].replace(b"Length: 1", b"Length: 9")
    shell = Inspected(NO_LEAK, **policy)
    shell.client(GET)
    shell.app(said + (b"n" if secret else b""))
    shell.eof(shell.relay.app)
    if secret and policy is not DETECT:
        assert shell.to_client.startswith(b"HTTP/1.1 403 ")
    else:
        assert shell.to_client == said + (b"n" if secret else b"")
    assert shell.relay.client.ending


@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize("policy", [ENFORCE, FAIL, DETECT], ids=["Ignore", "Fail", "Detect"])
@pytest.mark.parametrize("app_open", [False, True])
def test_a_client_that_has_finished_sending_gets_judged_answers(secret, policy, app_open):
    shell = Inspected(NO_LEAK, app_open=app_open, **policy)
    shell.client(GET + GET)
    shell.eof(shell.relay.client)
    assert shell.to_app == GET + GET
    last = answer(SECRET if secret else b"harmless")
    for byte in pieces(answer(b"first") + last, 1):
        shell.app(byte)
        if shell.relay.client.ending:
            break
    if secret and policy is not DETECT:
        assert shell.to_client.startswith(answer(b"first") + b"HTTP/1.1 403 ")
        assert shell.relay.done
    else:
        assert shell.to_client == answer(b"first") + last
        shell.eof(shell.relay.app)
        assert shell.relay.done


def test_requests_behind_a_last_answer_go_nowhere_where_rules_block():
    shell = Inspected(NO_LEAK, **ENFORCE)
    shell.client(GET)
    shell.app(answer(b"ok", b"Connection: close"))
    assert shell.relay.done
    assert shell.to_client == answer(b"ok", b"Connection: close")


@pytest.mark.parametrize("policy", [ENFORCE, FAIL, DETECT], ids=["Ignore", "Fail", "Detect"])
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer(b"abc", b"Content-Encoding: zstd"), "response-encoding"),
        (answer(gzip.compress(b"abc")[:-3], b"Content-Encoding: gzip"), "response-truncated"),
    ],
)
def test_an_answer_that_cannot_be_inspected(asked, policy, said, reason):
    shell, say = asked(NO_LEAK, **policy)
    say(said)
    assert shell.seen.reasons == [(reason, policy is FAIL)]
    assert (shell.to_client == said) is (policy is not FAIL)
    assert (b" 403 " in shell.to_client) is (policy is FAIL)


def test_rules_that_only_alert_hold_nothing(asked):
    shell, say = asked(Rule("see", Action.ALERT, Direction.RESPONSE, patterns=(Pattern(regex="dawn"),)))
    said = answer(gzip.compress(SECRET), b"Content-Encoding: gzip", chunk=5)
    head = said.index(b"\r\n\r\n") + 4
    say(said[:head])
    assert shell.to_client == said[:head]
    for byte in pieces(said[head:], 1):
        say(byte)
    assert shell.to_client == said
    assert shell.seen.told == [("see", 2, False)]


def test_pipelined_answers_are_judged_one_by_one():
    for cut in (1, 13, 1 << 20):
        shell = Inspected(NO_LEAK)
        shell.client(get(b"/1") + get(b"/2") + get(b"/3"))
        for piece in pieces(answer(b"one") + answer(b"two") + answer(SECRET), cut):
            if not shell.relay.client.ending:
                shell.app(piece)
        assert shell.to_client.startswith(answer(b"one") + answer(b"two") + b"HTTP/1.1 403 ")
        assert shell.to_client.count(b"HTTP/1.1 ") == 3
        assert shell.seen.records[0].exchange.id == "x3"


def test_answers_that_no_rule_wants_pass_between_those_that_are_judged():
    only_p = Rule(
        "p", Action.BLOCK, Direction.RESPONSE, match=Match(Filter(methods=("POST",))), patterns=NO_LEAK.patterns
    )
    for cut in (1, 7, 1 << 20):
        shell = Inspected(only_p)
        shell.client(get(b"/1") + post(b"x") + get(b"/2") + post(b"y") + get(b"/3"))
        said = answer(SECRET) + INTERIM + answer(b"fine") + answer(SECRET, chunk=3) + answer(b"2") + answer(b"3")
        for piece in pieces(said, cut):
            shell.app(piece)
        assert shell.to_client == said
        assert shell.relay.idle
        shell.client(get(b"/4"))
        assert shell.relay.passes(shell.relay.app, answer(b"4")) is shell.relay.client


def test_an_unjudged_answer_that_ends_with_the_connection_behind_judged_ones():
    only_p = Rule(
        "p", Action.BLOCK, Direction.RESPONSE, match=Match(Filter(methods=("POST",))), patterns=NO_LEAK.patterns
    )
    shell = Inspected(only_p, **ENFORCE)
    shell.client(post(b"x") + get(b"/2"))
    shell.app(answer(b"1") + UNTIL_CLOSE + b"body")
    shell.app(b" goes on")
    assert shell.to_client == answer(b"1") + UNTIL_CLOSE + b"body goes on"


@each_row("said", [said for _, said in HOSTILE_RESPONSES], ids=[name for name, _ in HOSTILE_RESPONSES])
def test_an_answer_that_cannot_be_read(said):
    shell = Inspected(NO_LEAK, **ENFORCE)
    shell.client(get())
    shell.app(said)
    if shell.relay.anomaly:
        assert shell.to_client == said
        assert shell.seen.reasons == [(shell.relay.anomaly, False)]


UNREADABLE = [
    ("length and chunked", b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n" + SECRET),
    ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 14\n\n" + SECRET),
    ("obs-fold", b"HTTP/1.1 200 OK\r\nX: attack\r\n at dawn\r\nContent-Length: 14\r\n\r\n" + SECRET),
    ("another coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + SECRET),
    ("a body of 204", b"HTTP/1.1 204 No Content\r\n\r\n" + SECRET),
    ("a body of 304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 14\r\n\r\n" + SECRET),
    ("more than its length", answer(b"x") + SECRET),
    ("two answers", answer(b"x") + answer(SECRET)),
    ("a bad chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0e\n" + SECRET),
    ("a switch that nobody wants", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + SECRET),
    ("no HTTP", SECRET + b"\r\n\r\n"),
]


@pytest.mark.parametrize("cut", [1 << 20, 1])
@pytest.mark.parametrize("said", [said for _, said in UNREADABLE], ids=[name for name, _ in UNREADABLE])
def test_nothing_of_an_answer_that_cannot_be_read_goes_to_the_client_where_a_policy_closes(said, cut):
    shell = Inspected(NO_LEAK, **FAIL)
    shell.client(get())
    for at in range(0, len(said), cut):
        if shell.relay.client.ending:
            break
        shell.app(said[at : at + cut])
    assert SECRET not in shell.to_client
    assert b"dawn" not in shell.to_client
    assert shell.relay.client.ending
    assert any(closed for _, closed in shell.seen.reasons)


def test_an_unreadable_answer_takes_no_judged_one_with_it_where_a_policy_closes():
    quiet = Rule("r", Action.BLOCK, Direction.RESPONSE, path("/judged"), patterns=NO_LEAK.patterns)
    for first in (
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ):
        shell = Inspected(quiet, **FAIL)
        shell.client(get(b"/other") + get(b"/judged"))
        shell.app(first + answer(SECRET))
        assert SECRET not in shell.to_client


def test_an_answer_to_a_request_that_fell_back_from_its_handler_is_judged():
    shell = Inspected(NO_LEAK, route=Route((everything(),)), auto=False)
    shell.client(get())
    shell.refuse(shell.handlers[0])
    assert shell.to_app == get()
    shell.app(answer(SECRET))
    assert shell.to_client.startswith(b"HTTP/1.1 403 ")


def test_a_refused_upgrade():
    shell = Inspected(LEAKY_HEAD)
    shell.client(get(b"/", b"Upgrade: x", b"Connection: upgrade"))
    shell.app(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nX-Debug: 1\r\n\r\n")
    assert shell.to_client.startswith(b"HTTP/1.1 403 ")
