"""`OnUnreadable.CLOSE` without a rewriter: what can be read passes byte for byte, what cannot is closed."""

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.relay import OnUnreadable
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http2 import PREFACE
from tests.harness.table import each_row
from tests.unit.engine.hostile_heads import HOSTILE_HEADS
from tests.unit.engine.shell import Shell, rule

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def relay(kind):
    return Shell(kind(SteeredPort(8443, Route((rule(),))), tls=True, on_unreadable=OnUnreadable.CLOSE), app_open=True)


def test_what_can_be_read_takes_the_fast_way():
    shell = relay(Http1Relay)
    for _ in range(3):
        shell.client(GET)
        shell.app(OK)
    assert shell.to_app == GET * 3
    assert shell.relay.passes(shell.relay.client, GET) is shell.relay.app


@each_row("data", [data for _, data in HOSTILE_HEADS], ids=[name for name, _ in HOSTILE_HEADS])
def test_a_head_that_cannot_be_read_is_closed(data):
    shell = relay(Http1Relay)
    shell.client(GET)
    shell.app(OK)
    shell.client(data)
    assert shell.relay.done
    assert shell.to_app == GET


@pytest.mark.parametrize(
    "broken", [b"GET / HTTP/1.1\r\n", PREFACE + b"\0\0\0\x04\x01\0\0\0\0\0\0\x05\x09\x01\0\0\0\x01"]
)
def test_http2_that_cannot_be_read_is_closed(broken):
    shell = relay(Http2Relay)
    shell.client(broken)
    assert shell.relay.done
    assert shell.relay.wired is None
    assert shell.to_app == b""


def test_an_app_that_does_not_speak_http2_is_closed():
    shell = relay(Http2Relay)
    shell.client(PREFACE)
    shell.app(OK)
    assert shell.relay.done
    assert shell.relay.wired is None
