"""What the client says before it knows whether the protocol is switched."""

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.leg import HIGH_WATER, Ending
from sidestep.engine.relay import OnUnreadable
from sidestep.engine.rewriting import ClientCertificate
from sidestep.policy.route import Route, SteeredPort
from tests.unit.engine.http1.heads import OK_A, OK_B, SWITCHED, A, B, connect, upgrade
from tests.unit.engine.shell import Shell, http1, rule

EARLY = [b"\x81\x05hello", b"early", b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n", b"hello world\n"]


@pytest.mark.parametrize("early", [*EARLY, A, B, b"GET / HT"])
@pytest.mark.parametrize("form", [upgrade, connect, lambda request: upgrade(request, b"h2c, websocket")])
@pytest.mark.parametrize("step", [1, 1000])
def test_the_app_gets_it_at_once(early, form, step):
    shell = http1(rule())
    asked = form(A) + early
    for at in range(0, len(asked), step):
        shell.client(asked[at : at + step])
    assert shell.to_app == asked
    answer = SWITCHED % b"websocket" if b"Upgrade" in asked else b"HTTP/1.1 200 OK\r\n\r\n"
    shell.app(answer + b"hi")
    assert shell.to_client == answer + b"hi"
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)
    shell.client(B)
    assert shell.to_app == asked + B
    assert not shell.handlers


def test_it_waits_for_the_app_to_be_open_and_is_bounded():
    shell = http1(rule(), auto=False)
    shell.client(upgrade(A))
    while shell.relay.reads(shell.relay.client):
        shell.client(b"\x81" * 4096)
    assert shell.relay.app.queued <= 64 * 1024 + 2 * 4096
    shell.open(shell.relay.app)
    assert shell.to_app.startswith(upgrade(A) + b"\x81")


def test_more_than_can_be_kept_is_the_apps_for_good():
    shell = http1(rule())
    data = b"\x81" * 4096
    shell.client(upgrade(A))
    for _ in range(64):
        assert shell.relay.reads(shell.relay.client)
        shell.client(data)
    assert shell.to_app == upgrade(A) + data * 64
    assert shell.relay.anomaly == "h1-early-bytes"
    shell.app(OK_A)
    shell.client(B)
    assert shell.to_app.endswith(B)
    assert not shell.handlers


@pytest.mark.parametrize("form", [upgrade, connect])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("step", [1, 1000])
def test_requests_that_the_app_got_early_are_the_apps_and_counted(form, together, step):
    post = B.replace(b"GET", b"POST")[:-2] + b"Content-Length: 4\r\n\r\nabcd"
    chunked = A.replace(b"GET", b"POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    head = A.replace(b"GET", b"HEAD")
    early = A + post + chunked + head
    no_body = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    shell = http1(rule())
    asked = form(A) + early
    for at in range(0, len(asked), step):
        shell.client(asked[at : at + step])
    declined = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1\r\n\r\na"
    answers = declined + OK_A * 3 + no_body
    for answer in [answers] if together else [declined, OK_A, OK_A, OK_A, no_body]:
        shell.app(answer)
    assert shell.to_app == asked
    assert shell.to_client == answers
    assert not shell.handlers
    assert shell.relay.idle
    shell.client(B)
    shell.handler(OK_B)
    shell.client(A)
    shell.app(OK_A)
    assert shell.to_client == answers + OK_B + OK_A
    assert shell.relay.anomaly is None


def test_a_body_that_began_early_goes_on():
    shell = http1(rule())
    post = A.replace(b"GET", b"POST")[:-2] + b"Content-Length: 4\r\n\r\n"
    shell.client(upgrade(A) + post + b"ab")
    shell.app(OK_A)
    shell.client(b"cd" + B)
    assert shell.to_app == upgrade(A) + post + b"abcd"
    shell.app(OK_A)
    assert shell.to_handler == B


@pytest.mark.parametrize("early", [b"GET /b HT", b"\x81\x05hello", upgrade(A), connect(A), A + b"\0", A + b"GE"])
def test_what_the_app_got_early_and_is_no_whole_request_makes_a_wire(early):
    shell = http1(rule())
    shell.client(upgrade(A) + early)
    shell.app(OK_A)
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)
    shell.client(B)
    assert shell.to_app == upgrade(A) + early + B
    assert not shell.handlers


def test_an_answer_that_closes_after_early_bytes():
    shell = http1(rule())
    shell.client(upgrade(A) + A)
    shell.app(OK_A.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    shell.eof(shell.relay.app)
    assert shell.to_app == upgrade(A) + A
    assert shell.relay.client.ending is Ending.FINISH


@pytest.mark.parametrize("how", ["eof", "lose"])
def test_the_client_ends_or_breaks_after_early_bytes(how):
    shell = http1(rule())
    shell.client(upgrade(A) + b"early")
    getattr(shell, how)(shell.relay.client)
    assert shell.to_app == upgrade(A) + b"early"
    assert shell.relay.app.ending is (Ending.FINISH if how == "eof" else Ending.ABORT)


def test_early_http2_after_a_choice_of_protocols_makes_a_wire():
    shell = http1(rule())
    shell.client(upgrade(A, b"h2c, websocket") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    shell.app(SWITCHED % b"h2c")
    assert shell.relay.wired is not None
    assert shell.relay.successor is None


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize("form", [upgrade, connect, lambda request: upgrade(request, b"h2c, websocket")])
@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize("ends", [False, True])
def test_a_handler_gets_at_once_what_is_no_request(early, form, auto, ends):
    shell = http1(rule(), auto=auto)
    asked = form(B) + early
    shell.client(asked)
    if ends:
        shell.eof(shell.relay.client)
    if not auto:
        assert shell.to_handler == b""
        shell.open(shell.handlers[0])
    assert shell.to_handler == asked.replace(b"h2c, ", b"").replace(b", HTTP2-Settings", b"").replace(
        b"HTTP2-Settings: AAMAAABk\r\n", b""
    )
    if ends:
        assert shell.handlers[0].ending is Ending.FINISH
        return
    shell.client(b"GET / more")
    assert shell.to_handler.endswith(b"GET / more")
    answer = SWITCHED % b"websocket" if b"Upgrade" in asked else b"HTTP/1.1 200 OK\r\n\r\n"
    shell.handler(answer)
    assert shell.to_client == answer
    assert shell.relay.wired == (shell.relay.client, shell.handlers[0])
    assert shell.to_handler.endswith(early + b"GET / more")
    assert shell.to_app == b""


@pytest.mark.parametrize("early", [A, B, A[:3], b"\r\n" + A, b"FOO /x HTTP/1.1\r\n"])
@pytest.mark.parametrize("form", [upgrade, connect])
def test_a_handler_never_gets_what_may_be_somebody_elses_request(early, form):
    shell = http1(rule())
    for at in range(len(form(B) + early)):
        shell.client((form(B) + early)[at : at + 1])
    assert shell.to_handler == form(B)
    shell.handler(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    if early == B:
        assert shell.to_handler == form(B) + B
    else:
        assert shell.to_handler == form(B)


@pytest.mark.parametrize("answer", [OK_B, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"])
def test_a_handler_that_declines_after_early_bytes_answers_last(answer):
    shell = http1(rule())
    shell.client(upgrade(B) + b"\x81\x05hello")
    shell.handler(answer)
    assert shell.to_client == answer
    assert shell.relay.client.ending is Ending.CLOSE
    assert shell.relay.done


@pytest.mark.parametrize("how", ["eof", "lose"])
def test_a_handler_lost_after_early_bytes_is_told(how):
    shell = http1(rule())
    shell.client(upgrade(B) + b"\x81\x05hello")
    getattr(shell, how)(shell.handlers[0])
    assert shell.to_client.startswith(b"HTTP/1.1 502 ")
    assert b"\r\nConnection: close\r\n" in shell.to_client
    assert shell.to_app == b""
    assert shell.relay.client.ending is Ending.CLOSE


def test_a_refused_handler_leaves_early_bytes_to_the_app():
    shell = http1(rule(), auto=False)
    shell.client(upgrade(B) + b"\x81\x05hello")
    shell.refuse(shell.handlers[0])
    shell.open(shell.relay.app)
    assert shell.to_app == upgrade(B) + b"\x81\x05hello"
    shell.client(b"more")
    assert shell.to_app == upgrade(B) + b"\x81\x05hellomore"
    shell.app(SWITCHED % b"websocket")
    assert shell.to_client == SWITCHED % b"websocket"


def test_a_handler_that_reads_nothing_holds_the_client_up():
    shell = http1(rule())
    relay = shell.relay
    shell.client(upgrade(B))
    taken = 0
    while relay.reads(relay.client):
        relay.receive(relay.client, b"\x81" * 65536, 0.0)
        taken += 65536
    assert HIGH_WATER <= taken <= HIGH_WATER + 65536


def test_copies_get_early_bytes_once():
    for side, rules in (("app", ()), ("handler", (rule(),))):
        for early, late in ((b"\x81\x05hello", b"more"), (b"\x81" * 9, b"")):
            shell = http1(*rules, taps=(rule("tap"),))
            shell.client(upgrade(B) + early)
            getattr(shell, side)(SWITCHED % b"websocket")
            if late:
                shell.client(late)
            assert shell.to(shell.taps[0]) == upgrade(B) + early + late


def test_copies_of_early_requests():
    shell = http1(taps=(rule("tap"),))
    shell.client(upgrade(A) + B + A)
    shell.app(OK_A * 3)
    assert [shell.to(tap) for tap in shell.taps] == [B]


@pytest.mark.parametrize("cut", [0, 2, 5])
def test_copies_of_an_early_request_with_a_body(cut):
    shell = http1(taps=(rule("tap"),))
    post = B.replace(b"GET", b"POST")[:-2] + b"Content-Length: 5\r\n\r\nhello"
    shell.client(upgrade(A) + post[: len(post) - cut])
    shell.app(OK_A)
    if cut:
        shell.client(post[-cut:])
    shell.app(OK_B)
    assert shell.to_app == upgrade(A) + post
    assert [shell.to(tap) for tap in shell.taps] == [post]
    assert shell.relay.idle


def test_an_early_body_that_is_broken_makes_a_wire():
    shell = http1(rule())
    early = A.replace(b"GET", b"POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\nx"
    shell.client(upgrade(A) + early)
    shell.app(OK_A)
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)
    assert shell.relay.anomaly == "h1-early-bytes"
    assert shell.to_app == upgrade(A) + early


def test_where_heads_are_rewritten_nothing_goes_ahead_to_the_app():
    shell = Shell(
        Http1Relay(
            SteeredPort(80, Route((rule(),))),
            tls=True,
            on_unreadable=OnUnreadable.CLOSE,
            rewriter=ClientCertificate(None),
        ),
        app_open=True,
    )
    spoof = A[:-2] + b"X-Forwarded-Client-Cert: me\r\n\r\n"
    shell.client(upgrade(A) + spoof)
    assert shell.to_app == upgrade(A)
    shell.app(OK_A)
    assert shell.to_app == upgrade(A) + A
