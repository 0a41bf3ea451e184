"""What the client says: its end, heads that are cut or slow."""

import pytest

from sidestep.engine.leg import Ending
from tests.unit.engine.http1.heads import OK_A, OK_B, A, B
from tests.unit.engine.shell import http1, rule


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
