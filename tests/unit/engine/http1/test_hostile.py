"""No ambiguity leads to a handler: what cannot be read with certainty reaches the app untouched."""

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.leg import Ending
from sidestep.policy.route import Route, SteeredPort
from tests.harness.table import each_row
from tests.unit.engine.hostile_heads import (
    HOSTILE,
    HOSTILE_BODIES,
    HOSTILE_HEADS,
    HOSTILE_RESPONSE_BODIES,
    HOSTILE_RESPONSES,
    SMUGGLED,
    request,
)
from tests.unit.engine.shell import Shell, everything, http1

GET = request(line=b"GET /orders HTTP/1.1")
PLAIN = b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"
PIECES = [pytest.param(7, marks=pytest.mark.unmeasured), pytest.param(1, marks=pytest.mark.unmeasured), 100_000]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def ids(cases):
    return [name for name, _ in cases]


def values(cases):
    return [data for _, data in cases]


def assert_wire(shell, data):
    relay = shell.relay
    assert shell.to_app == data
    assert shell.opened_handlers == 0
    assert not relay.mirror.notes
    assert relay.wired == (relay.client, relay.app)
    assert relay.anomaly is not None
    assert relay.anomaly.startswith("h1-")


def test_the_table_is_large_and_has_no_case_twice():
    assert len(HOSTILE) >= 300
    assert len({data for _, data in HOSTILE}) == len(HOSTILE)
    assert len(set(ids(HOSTILE))) == len(HOSTILE)


@each_row("data", values(HOSTILE), ids=ids(HOSTILE))
def test_whole(data):
    shell = http1(everything())
    shell.client(data)
    assert_wire(shell, data)


@pytest.mark.unmeasured
@each_row("data", values(HOSTILE_HEADS), ids=ids(HOSTILE_HEADS))
def test_heads_byte_by_byte(data):
    shell = http1(everything())
    for at in range(len(data)):
        shell.client(data[at : at + 1])
    assert_wire(shell, data)


@pytest.mark.unmeasured
@each_row("data", values(HOSTILE_HEADS), ids=ids(HOSTILE_HEADS))
def test_heads_behind_a_diverted_request_wait_for_its_answer(data):
    shell = http1(everything())
    shell.client(GET + data)
    assert shell.to_handler == GET
    assert shell.to_app == b""
    shell.handler(OK)
    assert shell.to_client == OK
    assert shell.to_app == data
    assert shell.handlers[0].ending is Ending.CLOSE
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)


@pytest.mark.unmeasured
@each_row("data", values(HOSTILE_BODIES), ids=ids(HOSTILE_BODIES))
def test_bodies_of_requests_for_the_app_byte_by_byte(data):
    shell = http1()
    for at in range(len(data)):
        shell.client(data[at : at + 1])
    assert_wire(shell, data)


@each_row("data", values(HOSTILE_BODIES), ids=ids(HOSTILE_BODIES))
def test_bodies_are_refused_once_a_handler_has_their_head(data):
    shell = http1(everything())
    head, body = data.split(b"\r\n\r\n", 1)
    shell.client(head + b"\r\n\r\n")
    assert shell.to_handler == head + b"\r\n\r\n"
    for at in range(len(body)):
        shell.client(body[at : at + 1])
    assert shell.to_app == b""
    assert SMUGGLED not in shell.to_handler
    assert shell.to_client.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\n\r\nsidestep: intercept shop/dev: " in shell.to_client
    assert b"\r\nConnection: close\r\n" in shell.to_client
    assert shell.handlers[0].ending is Ending.ABORT
    assert shell.relay.client.ending is Ending.FINISH
    shell.eof(shell.relay.client)
    assert shell.relay.done


@pytest.mark.parametrize("step", PIECES)
@each_row("data", values(HOSTILE_RESPONSES), ids=ids(HOSTILE_RESPONSES))
def test_responses_of_the_app_pass_and_end_diversion(data, step):
    port = SteeredPort(8080)
    shell = Shell(Http1Relay(port, tls=False))
    shell.client(PLAIN)
    port.route = Route((everything(),))
    for at in range(0, len(data), step):
        shell.app(data[at : at + step])
    assert shell.to_client == data
    assert shell.relay.wired is not None
    assert shell.relay.anomaly.startswith("h1-response-")
    shell.client(GET)
    assert shell.to_app == PLAIN + GET
    assert shell.opened_handlers == 0


@pytest.mark.parametrize("step", PIECES)
@each_row("data", values(HOSTILE_RESPONSES), ids=ids(HOSTILE_RESPONSES))
def test_responses_of_a_handler_become_502_and_end_diversion(data, step):
    shell = http1(everything())
    shell.client(GET)
    handler = shell.handlers[0]
    for at in range(0, len(data), step):
        if not handler.ending:
            shell.handler(data[at : at + step])
    assert shell.to_client.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert shell.to_client.count(b"HTTP/1.1") == 1
    assert handler.ending is Ending.ABORT
    shell.client(GET)
    assert shell.to_app == GET


@pytest.mark.parametrize("step", PIECES[1:])
@each_row("data", values(HOSTILE_RESPONSE_BODIES), ids=ids(HOSTILE_RESPONSE_BODIES))
def test_response_bodies_of_the_app_pass_and_end_diversion(data, step):
    shell = http1()
    shell.client(PLAIN)
    for at in range(0, len(data), step):
        shell.app(data[at : at + step])
    assert shell.to_client == data
    assert shell.relay.wired is not None
    assert shell.relay.anomaly in ("h1-response-chunk", "h1-unsolicited-response")


@pytest.mark.parametrize("step", PIECES[1:])
@each_row("data", values(HOSTILE_RESPONSE_BODIES), ids=ids(HOSTILE_RESPONSE_BODIES))
def test_response_bodies_of_a_handler_break_the_connection(data, step):
    shell = http1(everything())
    shell.client(GET)
    handler = shell.handlers[0]
    for at in range(0, len(data), step):
        if not handler.ending:
            shell.handler(data[at : at + step])
    assert shell.relay.client.ending is Ending.ABORT
    assert shell.relay.done
    assert shell.to_app == b""
