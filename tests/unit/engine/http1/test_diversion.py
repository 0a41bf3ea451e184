"""Which request goes where, in which order, and that every byte arrives as it was sent."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.leg import Ending
from sidestep.policy.route import Route, SteeredPort
from tests.effort import examples
from tests.unit.engine.shell import Shell, everything, http1, rule

A = b"GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n"
B = b"GET /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\n\r\n"
OTHER = B.replace(b"me", b"you")
OK_A = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
OK_B = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"
NO_BODY = b"HTTP/1.1 204 No Content\r\n\r\n"


def post(body: bytes, *, matching: bool, chunked: bool = False) -> bytes:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    field = b"X-Dev: me\r\n" if matching else b""
    payload = b"%x;ext=1\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n" % (len(body), body) if chunked and body else body
    if chunked and not body:
        payload = b"0\r\n\r\n"
    return b"POST /p HTTP/1.1\r\nHost: app.test\r\n" + field + framing + b"\r\n\r\n" + payload


def test_a_request_that_does_not_match_goes_to_the_app_as_the_same_object():
    shell = http1(rule(), auto=False)
    relay = shell.relay
    relay.receive(relay.client, A, 0.0)
    assert relay.app.out[0] is A
    assert relay.opening == [relay.app]
    relay.app.out.clear()
    again = bytes(bytearray(A))
    relay.receive(relay.client, again, 0.0)
    assert relay.app.out[0] is again
    relay.receive(relay.app, OK_A, 0.0)
    assert relay.client.out[0] is OK_A


def test_plain_heads_and_their_answers_pass():
    shell = http1(rule(), app_open=True)
    relay = shell.relay
    assert relay.passes(relay.client, A) is None  # nobody is spoken to yet
    shell.client(A)
    shell.app(OK_A)
    heads = (A, A.replace(b"/a", b"/a?1"), A.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
    for head in heads:
        assert relay.passes(relay.client, head) is relay.app
        assert relay.passes(relay.app, OK_A[:-1]) is relay.client
        assert relay.passes(relay.app, OK_A[-1:]) is relay.client
    assert relay.idle


@pytest.mark.parametrize(
    "data",
    [
        B,
        A + A,
        A[:-1],
        A.replace(b"GET", b"HEAD"),
        A.replace(b"1.1", b"1.0"),
        A.replace(b"HTTP/", b"http/"),
        A.replace(b"app.test", b""),
        post(b"hello", matching=False),
        post(b"hello", matching=False, chunked=True),
        A.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
        A.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    ],
)
def test_whatever_else_does_not_pass(data):
    shell = http1(rule(), app_open=True)
    shell.client(A)
    shell.app(OK_A)
    relay = shell.relay
    for _ in range(3):
        assert relay.passes(relay.client, data) is None


def test_nothing_passes_while_a_handler_answers_or_a_request_is_held():
    shell = http1(rule(), app_open=True)
    relay = shell.relay
    shell.client(A)
    shell.client(B)
    assert relay.passes(relay.client, A) is None
    assert relay.passes(relay.app, OK_A) is None
    shell.app(OK_A)
    assert relay.passes(relay.client, A) is None
    shell.handler(OK_B)
    shell.client(A)
    assert relay.passes(relay.client, A) is relay.app


def test_a_small_body_leaves_with_its_head_as_the_same_object():
    shell = http1(rule(), auto=False)
    data = post(b"hello", matching=False)
    shell.relay.receive(shell.relay.client, data, 0.0)
    assert shell.relay.app.out[0] is data


def test_the_app_is_not_asked_for_while_everything_matches():
    shell = http1(rule())
    shell.client(B)
    shell.handler(OK_B)
    shell.client(B)
    shell.handler(OK_B)
    assert shell.to_app == b""
    assert not shell.relay.app.open
    assert shell.to_handler == B + B
    assert shell.opened_handlers == 1


def test_an_app_that_the_shell_opened_is_not_asked_for():
    shell = http1(rule(), app_open=True, auto=False)
    shell.client(A)
    assert not shell.waiting
    assert shell.to_app == A


def test_requests_alternate_on_one_connection():
    shell = http1(rule())
    for _ in range(100):
        shell.client(A)
        shell.app(OK_A)
        shell.client(B)
        shell.handler(OK_B)
    assert shell.to_client == (OK_A + OK_B) * 100
    assert shell.to_app == A * 100
    assert shell.to_handler == B * 100
    assert shell.opened_handlers == 1
    assert len(shell.relay.legs) == 3


def test_each_intercept_has_a_handler_leg_of_its_own():
    shell = http1(rule("one"), rule("two", b"you"))
    shell.client(B + OTHER + B)
    shell.handler(OK_B, 0)
    shell.handler(OK_A, 1)
    shell.handler(OK_B, 0)
    assert [shell.to(leg) for leg in shell.handlers] == [B + B, OTHER]
    assert shell.to_client == OK_B + OK_A + OK_B


def test_diverted_requests_are_noted():
    shell = http1(rule())
    shell.client(B.replace(b"/b", b"/b?q=1"))
    (noted,) = shell.notes
    assert (noted.method, noted.path, noted.authority, noted.copied) == (b"GET", b"/b?q=1", b"app.test", False)
    assert noted.rule.display == "shop/dev"


def test_pipelined_requests_for_the_app_are_forwarded_at_once():
    shell = http1(rule())
    shell.client(A * 5)
    assert shell.to_app == A * 5


def test_a_pipelined_match_waits_for_the_answers_of_the_app():
    shell = http1(rule())
    shell.client(A + A + B + A)
    assert shell.to_app == A + A
    assert not shell.handlers
    shell.app(OK_A)
    assert not shell.handlers
    shell.app(OK_A)
    assert shell.to_handler == B
    assert shell.to_app == A + A
    shell.handler(OK_B)
    assert shell.to_app == A + A + A
    shell.app(OK_A)
    assert shell.to_client == OK_A + OK_A + OK_B + OK_A


def test_a_handler_gets_one_request_at_a_time():
    shell = http1(rule())
    shell.client(B + B)
    assert shell.to_handler == B
    shell.handler(OK_B)
    assert shell.to_handler == B + B


def test_a_match_waits_while_a_body_for_the_app_is_under_way():
    shell = http1(rule())
    data = post(b"x" * 1000, matching=False) + B
    shell.client(data[:600])
    shell.client(data[600:])
    assert shell.to_app == data[: -len(B)]
    assert not shell.handlers
    shell.app(OK_A)
    assert shell.to_handler == B


def test_an_early_answer_of_the_app_does_not_disturb_the_body():
    shell = http1(rule())
    data = post(b"x" * 1000, matching=False)
    shell.client(data[:600])
    shell.app(OK_A)
    shell.client(data[600:] + B)
    assert shell.to_app == data
    assert shell.to_handler == B


def test_an_early_answer_of_a_handler_does_not_disturb_the_body():
    shell = http1(rule())
    data = post(b"x" * 1000, matching=True)
    shell.client(data[:600])
    shell.handler(OK_B)
    assert shell.to_client == OK_B
    shell.client(data[600:] + A)
    assert shell.to_handler == data
    assert shell.to_app == A


def test_the_rest_of_a_body_is_dropped_when_a_handler_answered_and_left():
    shell = http1(rule())
    data = post(b"x" * 1000, matching=True)
    shell.client(data[:600])
    shell.handler(OK_B)
    shell.eof(shell.handlers[0])
    shell.client(data[600:] + A)
    assert shell.to_handler == data[:600]
    assert shell.to_app == A
    assert shell.relay.client.ending is Ending.NONE


@pytest.mark.parametrize("matching", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [0, 1, 5000, 200_000])
def test_bodies_pass_untouched(matching, chunked, size):
    data = post(b"z" * size, matching=matching, chunked=chunked)
    for step in (1, 1000, 1 << 20):
        if step == 1 and size > 5000:
            continue
        shell = http1(rule())
        for at in range(0, len(data), step):
            shell.client(data[at : at + step])
        assert (shell.to_handler if matching else shell.to_app) == data
        (shell.handler if matching else shell.app)(NO_BODY)
        shell.client(A)
        assert shell.to_app.endswith(A)


def test_expect_100_continue_is_left_to_whoever_answers():
    head = post(b"hello", matching=True).replace(b"Host", b"Expect: 100-continue\r\nHost")
    shell = http1(rule())
    shell.client(head[:-5])
    assert shell.to_handler == head[:-5]
    shell.handler(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert shell.to_client == b"HTTP/1.1 100 Continue\r\n\r\n"
    shell.client(b"hello")
    shell.handler(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK_B)
    shell.client(A)
    assert shell.to_app == A
    assert shell.to_client.endswith(OK_B)


def test_expect_100_continue_towards_the_app():
    head = post(b"hello", matching=False).replace(b"Host", b"Expect: 100-continue\r\nHost")
    shell = http1(rule())
    shell.client(head[:-5])
    shell.app(b"HTTP/1.1 100 Continue\r\n\r\n")
    shell.client(b"hello" + B)
    assert not shell.handlers
    shell.app(OK_A)
    assert shell.to_handler == B


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: 1\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding:Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        (b"GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"),
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Nope\r\nContent-Length: 2\r\n\r\nno"),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_answers_are_followed_to_their_end(method, answer, step):
    for first, second, answers_from in ((A, B, "app"), (B, A, "handler")):
        shell = http1(rule())
        shell.client(first.replace(b"GET", method) + second)
        for at in range(0, len(answer), step):
            getattr(shell, answers_from)(answer[at : at + step])
        assert shell.to_client == answer
        assert (shell.to_handler if answers_from == "app" else shell.to_app) != b""
        assert shell.relay.wired is None


def test_a_new_route_applies_to_the_next_request():
    port = SteeredPort(8080, Route((rule(),)))
    shell = Shell(Http1Relay(port, tls=False))
    shell.client(B)
    shell.handler(OK_B)
    port.route = Route()
    shell.client(B)
    shell.app(OK_A)
    port.route = Route((rule(),))
    shell.client(B)
    shell.handler(OK_B)
    assert shell.to_app == B
    assert shell.to_handler == B + B


@pytest.mark.parametrize(
    "target", [b"http://app.test/b?x", b"HTTP://APP.TEST/b", b"https://app.test", b"http://app.test?x"]
)
def test_absolute_form_is_matched_by_its_path(target):
    seen = []
    watching = everything()
    port = SteeredPort(
        8080, Route((type(watching)("u", "n", lambda method, path, fields: seen.append(path) or False),))
    )
    shell = Shell(Http1Relay(port, tls=False))
    data = A.replace(b"/a", target)
    shell.client(data)
    assert shell.to_app == data
    assert seen == [b"/b" if b"/b" in target else b"/"]


requests = st.one_of(
    st.just(A),
    st.just(B),
    st.just(OTHER),
    st.builds(post, st.binary(max_size=40), matching=st.booleans(), chunked=st.booleans()),
)


def matching(request: bytes) -> bool:
    return b"X-Dev: me" in request


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(requests, max_size=8), st.integers(0, 1 << 32), st.booleans(), st.booleans())
def test_any_cut_and_any_interleaving_gives_the_same_bytes(sent, seed, app_open, divert):
    """The client sends requests in random pieces; app and handler answer, in pieces, what they have got so far."""
    random = Random(seed)
    shell = http1(*([rule()] if divert else []), app_open=app_open)
    wire = b"".join(sent)
    to_app = [each for each in sent if not (divert and matching(each))]
    to_handler = [each for each in sent if divert and matching(each)]
    answers = {each: b"HTTP/1.1 200 OK\r\nX-N: %d\r\nContent-Length: 3\r\n\r\nabc" % n for n, each in enumerate(sent)}
    expected = b"".join(answers[each] for each in sent)
    at = 0
    owed: dict[str, list[Any]] = {"app": [b"", 0], "handler": [b"", 0]}
    for _ in range(4000):
        if at == len(wire) and shell.to_client == expected:
            break
        choice = random.choice(["client", "app", "handler"])
        if choice == "client" and at < len(wire):
            size = random.choice([1, 7, 40, 100, 1000])
            shell.client(wire[at : at + size])
            at += size
            continue
        if choice == "client":
            continue
        received = shell.to_app if choice == "app" else shell.to_handler
        queue = to_app if choice == "app" else to_handler
        state = owed[choice]
        while state[1] < len(queue) and received.startswith(b"".join(queue[: state[1] + 1])):
            state[0] += answers[queue[state[1]]]
            state[1] += 1
        if state[0]:
            size = random.choice([1, 20, 60, 1000])
            getattr(shell, choice)(state[0][:size])
            state[0] = state[0][size:]
    assert shell.to_client == expected
    assert shell.to_app == b"".join(to_app)
    assert shell.to_handler == b"".join(to_handler)
    assert shell.relay.wired is None
    assert shell.relay.anomaly is None


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_whatever_is_said_without_a_match_reaches_the_app_byte_for_byte(data, cuts):
    data = A + post(b"abc", matching=False, chunked=True) + data
    shell = http1(rule())
    at = 0
    for size in cuts * 20:
        if at < len(data):
            shell.client(data[at : at + size])
        at += size
    if at < len(data):
        shell.client(data[at:])
    shell.eof(shell.relay.client)
    assert shell.to_app == data
    assert shell.relay.app.ending is Ending.FINISH
