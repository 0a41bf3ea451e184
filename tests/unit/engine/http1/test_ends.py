"""Ends, half-closes, upgrades, tunnels and how a connection becomes a wire."""

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.relay import HIGH_WATER, Ending
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http1 import Http1Limits
from tests.unit.engine.shell import Shell, http1, rule

A = b"GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n"
B = b"GET /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\n\r\n"
OK_A = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
OK_B = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"
SOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def upgrade(request: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\n" + SOCKET + b"\r\n")


def connect(request: bytes) -> bytes:
    return request.replace(b"GET /a", b"CONNECT db.test:5432").replace(b"GET /b", b"CONNECT db.test:5432")


# --- the app's connection behaves as without us ---------------------------------------------------------------------


def test_fin_of_the_app_reaches_the_client_and_fin_of_the_client_the_app():
    shell = http1(rule())
    shell.client(A)
    shell.app(OK_A)
    shell.eof(shell.relay.app)
    assert shell.relay.client.ending is Ending.FINISH
    shell.client(B)
    assert shell.to_app == A + B
    shell.eof(shell.relay.client)
    assert shell.relay.app.ending is Ending.CLOSE
    assert shell.relay.done


def test_half_close_of_the_client_reaches_the_app_and_its_answer_still_comes():
    shell = http1(rule())
    shell.client(A)
    shell.eof(shell.relay.client)
    assert shell.relay.app.ending is Ending.FINISH
    shell.app(OK_A)
    shell.eof(shell.relay.app)
    assert shell.to_client == OK_A
    assert shell.relay.done


def test_half_close_waits_for_the_app_to_be_open():
    shell = http1(rule(), auto=False)
    shell.client(A)
    shell.eof(shell.relay.client)
    assert shell.relay.app.ending is Ending.NONE
    shell.open(shell.relay.app)
    assert shell.to_app == A
    assert shell.relay.app.ending is Ending.FINISH


def test_half_close_reaches_the_handler_and_its_answer_still_comes():
    shell = http1(rule())
    shell.client(B)
    shell.eof(shell.relay.client)
    assert shell.handlers[0].ending is Ending.FINISH
    shell.handler(OK_B)
    assert shell.to_client == OK_B
    assert shell.relay.client.ending is Ending.CLOSE
    assert shell.relay.done


def test_half_close_waits_for_the_handler_to_be_open():
    shell = http1(rule(), auto=False)
    shell.client(B)
    shell.eof(shell.relay.client)
    assert shell.handlers[0].ending is Ending.NONE
    shell.open(shell.handlers[0])
    assert shell.to_handler == B
    assert shell.handlers[0].ending is Ending.FINISH


def test_half_close_then_refused_handler():
    shell = http1(rule(), auto=False)
    shell.client(B)
    shell.eof(shell.relay.client)
    shell.refuse(shell.handlers[0])
    shell.open(shell.relay.app)
    assert shell.to_app == B
    assert shell.relay.app.ending is Ending.FINISH
    shell.app(OK_A)
    assert shell.to_client == OK_A


def test_half_close_behind_held_requests_is_passed_on_after_them():
    shell = http1(rule())
    shell.client(A + B + A)
    shell.eof(shell.relay.client)
    assert shell.relay.app.ending is Ending.NONE
    shell.app(OK_A)
    assert shell.to_handler == B
    assert shell.handlers[0].ending is Ending.NONE
    shell.handler(OK_B)
    assert shell.to_app == A + A
    assert shell.relay.app.ending is Ending.FINISH
    shell.app(OK_A)
    assert shell.to_client == OK_A + OK_B + OK_A
    shell.eof(shell.relay.app)
    assert shell.relay.done


@pytest.mark.parametrize("cut", [1, 20, len(A) - 1])
def test_a_head_cut_by_the_end_reaches_the_app(cut):
    shell = http1(rule())
    shell.client(B[:cut])
    assert shell.to_app == b""
    shell.eof(shell.relay.client)
    assert shell.to_app == B[:cut]
    assert shell.relay.app.ending is Ending.FINISH
    assert shell.relay.anomaly == "h1-truncated-head"


def test_a_head_cut_by_the_end_behind_a_diverted_request():
    shell = http1(rule())
    shell.client(B + A[:9])
    shell.eof(shell.relay.client)
    shell.handler(OK_B)
    assert shell.to_client == OK_B
    assert shell.to_app == A[:9]
    assert shell.relay.app.ending is Ending.FINISH


def test_a_body_cut_by_the_end():
    shell = http1(rule())
    data = b"POST / HTTP/1.1\r\nHost: a\r\nX-Dev: me\r\nContent-Length: 10\r\n\r\n123"
    shell.client(data)
    shell.eof(shell.relay.client)
    assert shell.to_handler == data
    assert shell.handlers[0].ending is Ending.FINISH
    shell.handler(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    assert shell.relay.done


def test_a_client_that_said_nothing():
    shell = http1(rule())
    shell.eof(shell.relay.client)
    assert shell.relay.done
    shell = http1(rule(), app_open=True)
    shell.eof(shell.relay.client)
    assert shell.relay.app.ending is Ending.FINISH


@pytest.mark.parametrize("before", [b"", A])
def test_an_app_that_breaks_resets_the_client(before):
    shell = http1(rule(), app_open=True)
    if before:
        shell.client(before)
        shell.app(OK_A[:20])
    shell.lose(shell.relay.app)
    assert shell.relay.client.ending is Ending.ABORT
    assert shell.relay.done


def test_an_app_that_ends_in_mid_response_is_passed_on():
    shell = http1(rule())
    shell.client(A + B)
    shell.app(OK_A[:-1])
    shell.eof(shell.relay.app)
    assert shell.to_client == OK_A[:-1]
    assert shell.relay.client.ending is Ending.FINISH
    assert shell.to_app == A + B
    assert not shell.handlers


def test_a_response_of_the_app_that_ends_with_the_connection_makes_a_wire():
    shell = http1(rule())
    shell.client(A)
    shell.app(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)
    assert shell.relay.anomaly is None
    shell.app(b" world")
    shell.eof(shell.relay.app)
    assert shell.to_client.endswith(b"hello world")
    assert shell.relay.client.ending is Ending.FINISH


def test_an_app_that_says_close_ends_diversion():
    shell = http1(rule())
    shell.client(A + B)
    shell.app(OK_A.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert shell.to_app == A + B
    assert not shell.handlers
    assert shell.relay.anomaly is None


def test_an_app_that_speaks_first_makes_a_wire():
    shell = http1(rule(), app_open=True)
    shell.app(b"220 mail.test ESMTP\r\n")
    assert shell.to_client == b"220 mail.test ESMTP\r\n"
    shell.client(B)
    assert shell.to_app == B
    assert shell.relay.anomaly == "h1-unsolicited-response"


def test_an_idle_timeout_notice_of_the_app_reaches_an_idle_client():
    shell = http1(rule())
    shell.client(B)
    shell.handler(OK_B)
    shell.client(A)
    shell.app(OK_A)
    shell.app(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
    shell.eof(shell.relay.app)
    assert shell.to_client.endswith(b"Connection: close\r\n\r\n")
    assert shell.relay.client.ending is Ending.FINISH
    assert shell.handlers[0].ending is Ending.CLOSE


# --- slow heads -----------------------------------------------------------------------------------------------------


def test_a_slow_head_is_given_to_the_app():
    shell = http1(rule())
    relay = shell.relay
    shell.now = 100.0
    shell.client(B[:30])
    assert relay.deadline == 105.0
    shell.now = 103.0
    shell.client(B[30:31])
    assert relay.deadline == 105.0, "each byte gave it more time"
    relay.expired(104.0)
    assert shell.to_app == b""
    relay.expired(105.0)
    shell._settle()
    assert shell.to_app == B[:31]
    assert relay.anomaly == "h1-slow-head"
    assert relay.deadline is None
    shell.client(B[31:])
    assert shell.to_app == B


def test_a_head_that_arrives_in_time_stops_the_clock():
    shell = http1(rule())
    relay = shell.relay
    shell.now = 100.0
    shell.client(B[:30])
    assert relay.deadline == 105.0
    shell.client(B[30:])
    assert relay.deadline is None
    relay.expired(105.0)
    assert shell.to_handler == B
    shell.handler(OK_B)
    shell.now = 106.0
    shell.client(A[:5])
    assert relay.deadline == 111.0


# --- upgrades and tunnels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [b"", b"\x81\x05hello"])
def test_an_upgrade_by_the_app(early):
    shell = http1(rule())
    shell.client(upgrade(A) + early)
    assert shell.to_app == upgrade(A) + early
    shell.app(SWITCHED + b"\x81\x02hi")
    assert shell.to_client == SWITCHED + b"\x81\x02hi"
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)
    assert shell.to_app == upgrade(A) + early
    shell.client(B)
    assert shell.to_app == upgrade(A) + early + B
    assert not shell.handlers


@pytest.mark.parametrize("early", [b"", b"\x81\x05hello"])
@pytest.mark.parametrize("step", [1, 1000])
def test_an_upgrade_by_a_handler(early, step):
    shell = http1(rule(), app_open=True)
    shell.client(upgrade(B) + early)
    answer = SWITCHED + b"\x81\x02hi"
    for at in range(0, len(answer), step):
        shell.handler(answer[at : at + step])
    assert shell.to_client == answer
    assert shell.relay.wired == (shell.relay.client, shell.handlers[0])
    assert shell.relay.app.ending is Ending.CLOSE
    assert shell.to_handler == upgrade(B) + early
    shell.client(A)
    assert shell.to_handler == upgrade(B) + early + A
    shell.eof(shell.handlers[0])
    assert shell.relay.client.ending is Ending.FINISH


def test_a_declined_upgrade_goes_on_with_http():
    for request, answer, side in ((upgrade(A), OK_A, "app"), (upgrade(B), OK_B, "handler")):
        shell = http1(rule())
        shell.client(request)
        getattr(shell, side)(answer)
        shell.client(A + B)
        shell.app(OK_A)
        shell.handler(OK_B)
        assert shell.to_client == answer + OK_A + OK_B
        assert shell.relay.wired is None


def test_a_declined_upgrade_with_a_body_answered_early():
    for side, field in (("app", b""), ("handler", b"X-Dev: me\r\n")):
        request = b"POST / HTTP/1.1\r\nHost: a\r\n" + field + SOCKET + b"Content-Length: 4\r\n\r\nabcd"
        shell = http1(rule())
        shell.client(request[:-2])
        getattr(shell, side)(OK_A)
        shell.client(request[-2:])
        shell.client(A)
        assert shell.to_app.endswith(A)


def test_an_upgrade_whose_handler_is_refused_can_still_be_switched_by_the_app():
    shell = http1(rule(), auto=False)
    shell.client(upgrade(B) + b"early")
    shell.refuse(shell.handlers[0])
    shell.open(shell.relay.app)
    shell.app(SWITCHED)
    assert shell.to_app == upgrade(B) + b"early"
    assert shell.to_client == SWITCHED


def test_a_handler_that_switches_unasked():
    shell = http1(rule())
    shell.client(B)
    shell.handler(SWITCHED)
    assert shell.to_client.startswith(b"HTTP/1.1 502 ")
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)


def test_h2c_is_a_wire_for_now():
    shell = http1(rule())
    shell.client(upgrade(A).replace(b"websocket", b"h2c"))
    shell.app(SWITCHED.replace(b"websocket", b"h2c"))
    assert shell.relay.wired is not None
    assert shell.relay.anomaly == "h1-h2c-upgrade"


@pytest.mark.parametrize("status", [b"200 OK", b"204 Whatever", b"299 X"])
def test_connect_becomes_a_tunnel(status):
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n"
    for request, side in ((connect(A), "app"), (connect(B), "handler")):
        shell = http1(rule())
        shell.client(request)
        getattr(shell, side)(answer + b"SSH")
        assert shell.to_client == answer + b"SSH"
        assert shell.relay.wired is not None
        shell.client(b"\0\1\2")
        assert (shell.to_app if side == "app" else shell.to_handler) == request + b"\0\1\2"


def test_a_refused_connect_goes_on_with_http():
    shell = http1(rule())
    no = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    shell.client(connect(B) + A)
    shell.handler(no)
    shell.app(OK_A)
    assert shell.to_client == no + OK_A


# --- bounds ---------------------------------------------------------------------------------------------------------


def pump(shell, data, limit):
    """Feed the client's bytes while the relay reads it; returns how many it took."""
    taken = 0
    while taken < limit and shell.relay.reads(shell.relay.client):
        shell.client(data)
        taken += len(data)
    return taken


def test_a_client_is_not_read_beyond_the_hold_while_another_side_answers():
    shell = http1(rule())
    shell.client(A + B)
    assert pump(shell, A * 30, 1 << 24) <= 64 * 1024 + 30 * len(A)
    shell.app(OK_A)
    assert not shell.relay.reads(shell.relay.client)
    shell.handler(OK_B)
    shell.app(OK_A * 1500)
    assert shell.relay.reads(shell.relay.client)


def test_a_client_is_not_read_beyond_the_hold_while_a_handler_opens():
    shell = http1(rule(), auto=False)
    shell.client(B.replace(b"\r\n\r\n", b"\r\nContent-Length: 100000000\r\n\r\n"))
    assert pump(shell, b"x" * 4096, 1 << 24) <= 64 * 1024 + 4096
    shell.open(shell.handlers[0])
    assert shell.relay.reads(shell.relay.client)


def test_tiny_pieces_are_kept_in_few_objects():
    """While a leg opens, and while one does not take what it is given."""
    body = bytes(range(250)) * 200
    for header in (b"", b"X-Dev: me\r\n"):
        shell = http1(rule(), auto=False)
        relay = shell.relay
        relay.receive(relay.client, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n%b\r\n" % header, 0.0)
        for at in range(0, len(body), 2):
            relay.receive(relay.client, body[at : at + 2], 0.0)
        (leg,) = relay.opening
        kept = leg.out or relay._state.diverted.kept  # type: ignore[attr-defined]
        assert b"".join(kept).endswith(body)
        assert len(kept) < 100
        relay.opened(leg, 0.0)
        assert b"".join(leg.out).endswith(b"\r\n\r\n" + body)
        assert len(leg.out) < 100
        assert leg.queued == sum(map(len, leg.out))


def test_a_client_is_not_read_beyond_the_hold_while_the_app_opens():
    for data in (A, b"\0"):
        shell = http1(rule(), auto=False)
        shell.client(data)
        assert pump(shell, b"x" * 4096 if data == b"\0" else A * 40, 1 << 24) <= 64 * 1024 + 4096


def test_back_pressure_of_app_handler_and_client():
    shell = http1(rule())
    relay = shell.relay
    relay.receive(relay.client, A, 0.0)
    relay.receive(relay.client, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n", 0.0)
    taken = 0
    while relay.reads(relay.client):
        relay.receive(relay.client, b"x" * 65536, 0.0)
        taken += 65536
    assert taken <= HIGH_WATER + 65536
    shell._settle()
    assert relay.reads(relay.client)
    relay.receive(relay.app, b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", 0.0)
    while relay.reads(relay.app):
        relay.receive(relay.app, b"x" * 65536, 0.0)
    assert relay.client.queued <= HIGH_WATER + 2 * 65536
    shell._settle()
    assert relay.reads(relay.app)


def test_unanswered_requests_are_bounded():
    shell = http1(rule())
    assert pump(shell, A, 1 << 24) <= 1024 * len(A)
    shell.app(OK_A)
    assert shell.relay.reads(shell.relay.client)


def test_the_memo_is_bounded_in_entries_and_bytes():
    limits = Http1Limits(memo_entries=16, memo_head=200)
    port = SteeredPort(8080, Route((rule(),)))
    shell = Shell(Http1Relay(port, tls=False, limits=limits))
    memo = port.route.memo
    for number in range(100):
        for _ in range(2):  # a head that was skimmed is remembered when it comes again
            shell.client(A.replace(b"/a", b"/%d" % number))
            shell.app(OK_A)
        assert len(memo) <= 16
    assert memo
    before = dict(memo)
    shell.client(A.replace(b"/a", b"/" + b"a" * 300))
    assert memo == before


def test_big_transfers_pass_without_being_kept():
    shell = http1(rule())
    shell.client(B.replace(b"\r\n\r\n", b"\r\nContent-Length: 33554432\r\n\r\n"))
    piece = b"x" * 65536
    for _ in range(512):
        shell.relay.receive(shell.relay.client, piece, 0.0)
        assert shell.handlers[0].queued <= 65536 * 2
        for leg in shell.handlers:
            leg.out.clear()
            leg.queued = 0
    shell.handler(b"HTTP/1.1 200 OK\r\nContent-Length: 33554432\r\n\r\n")
    for _ in range(512):
        shell.relay.receive(shell.handlers[0], piece, 0.0)
        assert shell.relay.client.queued <= 65536 * 2
        shell.relay.client.out.clear()
        shell.relay.client.queued = 0
    assert shell.relay.idle


def test_idle_says_whether_a_draining_proxy_may_close():
    shell = http1(rule())
    assert shell.relay.idle
    shell.client(A[:10])
    assert not shell.relay.idle
    shell.client(A[10:])
    assert not shell.relay.idle
    shell.app(OK_A)
    assert shell.relay.idle
    shell.client(B)
    assert not shell.relay.idle
    shell.handler(OK_B)
    assert shell.relay.idle
