"""How HTTP/1 ends: upgrades and tunnels, by the app and by handlers."""

import pytest

from sidestep.engine.leg import Ending
from tests.unit.engine.http1.heads import OK_A, OK_B, SWITCHED, A, B, connect, upgrade
from tests.unit.engine.shell import http1, rule

SOCKET = SWITCHED % b"websocket"
OFFER = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize("early", [b"", b"\x81\x05hello"])
def test_an_upgrade_by_the_app(early):
    shell = http1(rule())
    shell.client(upgrade(A) + early)
    assert shell.to_app == upgrade(A) + early
    shell.app(SOCKET + b"\x81\x02hi")
    assert shell.to_client == SOCKET + b"\x81\x02hi"
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
    answer = SOCKET + b"\x81\x02hi"
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
        request = b"POST / HTTP/1.1\r\nHost: a\r\n" + field + OFFER + b"Content-Length: 4\r\n\r\nabcd"
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
    shell.app(SOCKET)
    assert shell.to_app == upgrade(B) + b"early"
    assert shell.to_client == SOCKET


def test_a_handler_that_switches_unasked():
    shell = http1(rule())
    shell.client(B)
    shell.handler(SOCKET)
    assert shell.to_client.startswith(b"HTTP/1.1 502 ")
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)


def test_h2c_is_a_wire_for_now():
    shell = http1(rule())
    shell.client(upgrade(A).replace(b"websocket", b"h2c"))
    shell.app(SOCKET.replace(b"websocket", b"h2c"))
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
