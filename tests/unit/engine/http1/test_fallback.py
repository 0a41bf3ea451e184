"""What becomes of a diverted request when its handler cannot be had, or goes away."""

import h11
import pytest

from sidestep.engine.leg import Ending, Role
from tests.unit.engine.shell import http1, rule

A = b"GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n"
B = b"GET /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\nContent-Length: 10\r\n\r\n"
OK_A = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
OK_B = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"


def response(data: bytes, method: str = "GET"):
    """Read one response with a strict reader: head, body, what follows."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "app.test")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    head = connection.next_event()
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return head, body, connection.trailing_data[0]


def test_a_refused_handler_leaves_the_request_to_the_app():
    shell = http1(rule(), auto=False)
    shell.client(B)
    assert [leg.role.name for leg in shell.waiting] == ["HANDLER"]
    shell.refuse(shell.handlers[0])
    assert shell.waiting == [shell.relay.app]
    shell.open(shell.relay.app)
    assert shell.to_app == B
    assert not shell.notes
    shell.app(OK_A)
    assert shell.to_client == OK_A
    shell.client(B)
    assert len(shell.waiting) == 1
    shell.open(shell.handlers[1])
    shell.handler(OK_B)
    assert shell.to_client == OK_A + OK_B


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_waited_for_a_refused_handler_goes_to_the_app_too(chunked):
    data = POST + b"0123456789"
    if chunked:
        data = (
            POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked") + b"4\r\nabcd\r\n3\r\nxyz\r\n0\r\n\r\n"
        )
    shell = http1(rule(), auto=False)
    shell.client(data[:-8])
    shell.client(data[-8:-4])
    shell.refuse(shell.handlers[0])
    shell.open(shell.relay.app)
    assert shell.to_app == data[:-4]
    shell.client(data[-4:] + A)
    assert shell.to_app == data + A


def test_what_was_held_behind_a_refused_request_goes_on():
    shell = http1(rule(), auto=False)
    shell.client(B + A + B)
    shell.refuse(shell.handlers[0])
    shell.open(shell.relay.app)
    assert shell.to_app == B + A
    shell.app(OK_A)
    shell.app(OK_A)
    shell.open(shell.handlers[-1])
    assert shell.to_handler == B


@pytest.mark.parametrize("how", ["eof", "lose"])
def test_a_handler_lost_before_it_answers_leaves_the_request_to_the_app(how):
    shell = http1(rule())
    shell.client(B)
    getattr(shell, how)(shell.handlers[0])
    assert shell.to_handler == B
    assert shell.to_app == B
    assert shell.to_client == b""
    assert shell.handlers[0].ending >= Ending.CLOSE


@pytest.mark.parametrize("how", ["eof", "lose"])
def test_so_does_one_that_awaits_a_body_after_expect(how):
    shell = http1(rule())
    shell.client(POST.replace(b"Host", b"Expect: 100-continue\r\nHost"))
    getattr(shell, how)(shell.handlers[0])
    assert shell.to_app.endswith(b"\r\n\r\n")
    shell.app(b"HTTP/1.1 100 Continue\r\n\r\n")
    shell.client(b"0123456789")
    assert shell.to_app.endswith(b"\r\n\r\n0123456789")


@pytest.mark.parametrize("how", ["eof", "lose"])
def test_a_consumed_body_means_502_and_the_connection_goes_on(how):
    shell = http1(rule())
    shell.client(POST + b"0123456789")
    getattr(shell, how)(shell.handlers[0])
    head, body, rest = response(shell.to_client)
    assert head.status_code == 502
    assert body.startswith(b"sidestep: intercept shop/dev: ")
    assert rest == b""
    assert (b"connection", b"close") not in head.headers
    assert shell.to_app == b""
    shell.client(A)
    shell.app(OK_A)
    assert shell.to_client.endswith(OK_A)
    shell.client(B)
    assert shell.opened_handlers == 2


@pytest.mark.parametrize("how", ["eof", "lose"])
def test_an_unfinished_consumed_body_means_502_and_close(how):
    shell = http1(rule())
    shell.client(POST + b"0123")
    getattr(shell, how)(shell.handlers[0])
    head, body, _ = response(shell.to_client)
    assert head.status_code == 502
    assert (b"connection", b"close") in head.headers
    assert body.startswith(b"sidestep:")
    client = shell.relay.client
    assert client.ending is Ending.FINISH
    assert shell.relay.reads(client)
    shell.client(b"456789" + A)
    assert shell.to_app == b""
    assert not shell.relay.done
    shell.eof(client)
    assert client.ending is Ending.CLOSE
    assert shell.relay.done


def test_a_client_that_goes_on_after_its_502_is_not_read_for_ever():
    shell = http1(rule())
    shell.client(POST + b"0123")
    shell.lose(shell.handlers[0])
    for _ in range(1000):
        if shell.relay.done:
            break
        shell.client(b"x" * 65536)
    assert shell.relay.done


def test_the_502_of_a_head_request_has_no_body():
    shell = http1(rule())
    shell.client(B.replace(b"GET", b"HEAD"))
    shell.handler(b"HTTP/1.1 100 Continue\r\n\r\n")
    sofar = len(shell.to_client)
    shell.lose(shell.handlers[0])
    head, body, rest = response(shell.to_client[sofar:], "HEAD")
    assert head.status_code == 502
    assert body == b""
    assert rest == b""
    shell.client(A)
    assert shell.to_app == A


def test_a_502_for_http_1_0_closes():
    shell = http1(rule())
    shell.client(POST.replace(b"1.1", b"1.0").replace(b"Host", b"Connection: keep-alive\r\nHost") + b"0123456789")
    shell.lose(shell.handlers[0])
    head, _, _ = response(shell.to_client)
    assert (b"connection", b"close") in head.headers
    assert shell.relay.client.ending is Ending.CLOSE
    assert shell.relay.done


def test_a_502_for_connection_close_closes():
    shell = http1(rule())
    shell.client(POST.replace(b"Host", b"Connection: close\r\nHost") + b"0123456789")
    shell.lose(shell.handlers[0])
    assert b"Connection: close\r\n" in shell.to_client
    assert shell.relay.done


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n"])
def test_a_handler_lost_in_its_head_means_502(part):
    shell = http1(rule())
    shell.client(B)
    shell.handler(part)
    shell.eof(shell.handlers[0])
    head, _, _ = response(shell.to_client)
    assert head.status_code == 502
    assert shell.to_app == b""


@pytest.mark.parametrize("step", [1000, 100_000])
def test_the_502_of_a_head_that_is_too_large_says_so(step):
    shell = http1(rule())
    shell.client(B)
    answer = b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 65536 + b"\r\n\r\n"
    for at in range(0, len(answer), step):
        if not shell.handlers[0].ending:
            shell.handler(answer[at : at + step])
    _, body, _ = response(shell.to_client)
    assert body == b"sidestep: intercept shop/dev: the head of the handler's response is larger than 64 KiB\n"


@pytest.mark.parametrize(
    "part",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n0\r\n",
    ],
)
@pytest.mark.parametrize("how", ["eof", "lose"])
def test_a_handler_lost_in_mid_response_breaks_the_client(part, how):
    shell = http1(rule())
    shell.client(B)
    shell.handler(part)
    assert shell.to_client == part
    getattr(shell, how)(shell.handlers[0])
    assert shell.relay.client.ending is Ending.ABORT
    assert shell.relay.done


def test_a_response_that_ends_with_the_connection_is_whole_at_its_end():
    shell = http1(rule())
    shell.client(B)
    shell.handler(b"HTTP/1.1 200 OK\r\n\r\nhello")
    shell.handler(b" world")
    assert not shell.relay.done
    shell.eof(shell.handlers[0])
    assert shell.to_client.endswith(b"hello world")
    assert shell.relay.client.ending is Ending.CLOSE
    assert shell.relay.done


def test_but_not_when_it_is_reset():
    shell = http1(rule())
    shell.client(B)
    shell.handler(b"HTTP/1.1 200 OK\r\n\r\nhello")
    shell.lose(shell.handlers[0])
    assert shell.relay.client.ending is Ending.ABORT


def test_a_handler_that_closed_while_idle_is_opened_anew_for_the_next_match():
    shell = http1(rule())
    for _ in range(50):
        shell.client(B)
        shell.handler(OK_B)
        shell.eof(shell.handlers[-1])
    assert shell.to_client == OK_B * 50
    assert shell.opened_handlers == 50
    assert len(shell.relay.legs) < 6
    assert shell.relay.client.ending is Ending.NONE


def test_a_handler_that_closes_just_as_it_is_reused_is_opened_anew():
    shell = http1(rule())
    shell.client(B)
    shell.handler(OK_B)
    shell.client(B)
    shell.lose(shell.handlers[0])
    assert shell.to(shell.handlers[1]) == B
    shell.handler(OK_B)
    assert shell.to_client == OK_B + OK_B
    assert shell.to_app == b""


def test_and_if_that_fails_the_app_answers():
    shell = http1(rule(), auto=False)
    shell.client(B)
    shell.open(shell.handlers[0])
    shell.handler(OK_B)
    shell.client(B)
    shell.eof(shell.handlers[0])
    shell.refuse(shell.handlers[1])
    shell.open(shell.relay.app)
    assert shell.to_app == B


def test_idle_chatter_of_a_handler_ends_its_leg_only():
    shell = http1(rule())
    shell.client(B)
    shell.handler(OK_B)
    shell.handler(OK_B)
    assert shell.handlers[0].ending is Ending.ABORT
    assert shell.to_client == OK_B
    shell.client(A)
    assert shell.to_app == A


def test_bytes_after_a_handlers_response_never_reach_the_client():
    shell = http1(rule())
    shell.client(B)
    shell.handler(OK_B + b"HTTP/1.1 200 OK\r\n\r\n")
    assert shell.to_client == OK_B
    assert shell.handlers[0].ending is Ending.ABORT
    shell.client(B)
    assert shell.to(shell.handlers[1]) == B


def test_connection_close_of_a_handler_closes_the_client():
    shell = http1(rule())
    shell.client(A)
    shell.app(OK_A)
    shell.client(B)
    answer = OK_B.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    shell.handler(answer)
    assert shell.to_client == OK_A + answer
    assert shell.relay.client.ending is Ending.CLOSE
    assert shell.relay.app.ending is Ending.CLOSE
    assert shell.relay.done


@pytest.mark.parametrize(
    "request_",
    [
        B.replace(b"Host", b"Connection: close\r\nHost"),
        B.replace(b"Host", b"Connection: x, Close\r\nHost"),
        B.replace(b"1.1", b"1.0"),
    ],
)
def test_a_client_that_wants_one_answer_is_closed_after_it(request_):
    shell = http1(rule())
    shell.client(request_)
    assert shell.to_handler == request_
    shell.handler(OK_B)
    assert shell.to_client == OK_B
    assert shell.relay.client.ending is Ending.CLOSE
    assert shell.relay.done


def test_http_1_0_keep_alive_is_kept_when_both_say_so():
    shell = http1(rule())
    old = B.replace(b"1.1", b"1.0").replace(b"Host", b"Connection: keep-alive\r\nHost")
    shell.client(old)
    shell.handler(OK_B.replace(b"\r\n\r\n", b"\r\nConnection: Keep-Alive\r\n\r\n"))
    assert not shell.relay.done
    shell.client(old)
    shell.handler(OK_B)
    assert shell.relay.done


def test_nothing_pipelined_after_a_closing_answer_is_served():
    shell = http1(rule())
    shell.client(B + A)
    shell.handler(OK_B.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert shell.to_app == b""
    assert shell.relay.client.ending is Ending.FINISH
    shell.client(A)
    shell.eof(shell.relay.client)
    assert shell.to_app == b""
    assert shell.relay.done


# --- the app beside a diverted request ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eof", "lose"])
def test_an_app_that_closes_idle_during_a_diverted_request_is_dialled_anew(how):
    shell = http1(rule())
    shell.client(A)
    shell.app(OK_A)
    for _ in range(20):
        shell.client(B)
        getattr(shell, how)(shell.relay.app)
        assert shell.relay.client.ending is Ending.NONE
        shell.handler(OK_B)
        shell.client(A)
        shell.app(OK_A)
    assert shell.to_client == OK_A + (OK_B + OK_A) * 20
    assert len(shell.apps) == 21
    assert [shell.to(leg) for leg in shell.apps] == [A] * 21
    assert len(shell.relay.legs) < 6


def test_an_answer_of_the_app_to_nothing_never_reaches_a_client_that_awaits_a_handler():
    shell = http1(rule())
    shell.client(A)
    shell.app(OK_A)
    shell.client(B)
    first = shell.relay.app
    shell.app(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    shell.eof(first)
    shell.handler(OK_B)
    assert shell.to_client == OK_A + OK_B
    shell.client(A)
    shell.app(OK_A)
    assert shell.to_client == OK_A + OK_B + OK_A


def test_a_refused_app_resets_the_client():
    shell = http1(rule(), auto=False)
    shell.client(A)
    shell.refuse(shell.relay.app)
    assert shell.relay.client.ending is Ending.ABORT
    assert shell.relay.done


def test_a_client_that_breaks_breaks_everything():
    shell = http1(rule())
    shell.client(A)
    shell.app(OK_A)
    shell.client(POST + b"01")
    shell.lose(shell.relay.client)
    assert shell.handlers[0].ending is Ending.ABORT
    assert shell.relay.app.ending is Ending.ABORT
    assert shell.relay.done


def test_an_aborted_client_while_its_handler_opens_leaves_nothing_to_open():
    shell = http1(rule(), auto=False)
    shell.client(B)
    handler = shell.handlers[0]
    shell.lose(shell.relay.client)
    assert handler.ending is Ending.ABORT
    shell.open(handler)
    assert shell.to_handler == b""


def test_a_closed_leg_stays_until_what_it_still_has_is_written():
    relay = http1(rule()).relay

    def open_all():
        while relay.opening:
            relay.opened(relay.opening.pop(), 0.0)

    def an_app_that_answers_unread_and_leaves():
        app = relay.app
        relay.receive(relay.client, POST.replace(b"X-Dev: me\r\n", b"") + b"0123456789", 0.0)
        open_all()
        relay.receive(app, OK_A, 0.0)
        relay.receive(relay.client, B, 0.0)
        open_all()
        relay.receive_eof(app, 0.0)
        handler = next(leg for leg in relay.legs if leg.role is Role.HANDLER and not leg.ending)
        relay.receive(handler, OK_B, 0.0)
        assert app.ending is Ending.CLOSE
        return app

    apps = [an_app_that_answers_unread_and_leaves() for _ in range(4)]
    assert all(app.out and app in relay.legs for app in apps)
    for app in apps:
        app.out.clear()
        app.queued = 0
    more = [an_app_that_answers_unread_and_leaves() for _ in range(2)]
    assert not set(apps) & set(relay.legs)
    assert set(more) <= set(relay.legs)
