"""What the app says: forwarded, watched, and how its end and its breaks are passed on."""

import pytest

from sidestep.engine.leg import Ending
from tests.unit.engine.http1.heads import OK_A, OK_B, A, B
from tests.unit.engine.shell import http1, rule


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
