"""What a handler is offered of protocols that carry requests of other clients, and what it may choose."""

import pytest

from sidestep.engine.leg import Ending
from tests.unit.engine.http1.heads import OK_A, SWITCHED, A, B, connect, upgrade
from tests.unit.engine.shell import http1, rule


@pytest.mark.parametrize("offer", [b"h2c", b"H2C", b"HTTP/2.0", b"h2c, HTTP/2.0", b"TLS/1.0", b"SPDY/3.1"])
@pytest.mark.parametrize("form", [upgrade, lambda request, offer: connect(upgrade(request, offer))])
def test_a_handler_is_not_offered_them(offer, form):
    shell = http1(rule())
    shell.client(form(B, offer) + A)
    assert shell.to_handler == form(B, b"").replace(b"Connection: Upgrade\r\nUpgrade: \r\n", b"")
    shell.handler(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nb")
    assert shell.to_app == A
    shell.app(OK_A)
    shell.client(B)
    assert shell.to_handler.endswith(B)


@pytest.mark.parametrize("offer", [b"h2c", b"h2c, websocket", b"websocket", b"websocket, HTTP/2.0"])
@pytest.mark.parametrize("chosen", [b"h2c", b"H2C", b"websocket, h2c", b"HTTP/2.0", b"TLS/1.2"])
@pytest.mark.parametrize("form", [upgrade, lambda request, offer: connect(upgrade(request, offer))])
def test_a_handler_that_switches_to_one_is_refused(offer, chosen, form):
    shell = http1(rule())
    shell.client(form(B, offer))
    shell.handler(SWITCHED % chosen + b"\0\0\0\4\0\0\0\0\0")
    assert shell.to_client.startswith(b"HTTP/1.1 502 ")
    assert b"switches to a protocol that it was not offered\n" in shell.to_client
    assert shell.handlers[0].ending is Ending.ABORT
    shell.client(A)
    assert shell.to_app == A


@pytest.mark.parametrize("chosen", [b"", b"other", b"websocket, other"])
def test_a_handler_that_was_offered_less_must_say_what_it_chose(chosen):
    shell = http1(rule())
    shell.client(upgrade(B, b"h2c, websocket"))
    shell.handler(SWITCHED % chosen)
    assert shell.to_client.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("step", [1, 1000])
def test_what_carries_one_client_is_offered_and_may_be_chosen(step):
    shell = http1(rule())
    asked = upgrade(B, b"h2c, WebSocket")
    for at in range(0, len(asked), step):
        shell.client(asked[at : at + step])
    assert shell.to_handler == upgrade(B, b"WebSocket")
    shell.handler(SWITCHED % b"websocket" + b"\x81\x02hi")
    assert shell.to_client == SWITCHED % b"websocket" + b"\x81\x02hi"
    assert shell.relay.wired == (shell.relay.client, shell.handlers[0])


def test_a_handler_that_switches_a_connect_without_an_upgrade_is_refused():
    shell = http1(rule())
    shell.client(connect(B))
    shell.handler(SWITCHED % b"websocket")
    assert shell.to_client.startswith(b"HTTP/1.1 502 ")


def test_the_app_gets_the_offer_that_no_handler_takes_and_may_agree():
    shell = http1(rule(), auto=False)
    shell.client(upgrade(B, b"h2c"))
    shell.refuse(shell.handlers[0])
    shell.open(shell.relay.app)
    assert shell.to_app == upgrade(B, b"h2c")
    shell.relay.receive(shell.relay.app, SWITCHED % b"h2c", 0.0)
    assert shell.relay.successor is not None


def test_a_copy_shows_the_offer_as_it_was_made():
    shell = http1(taps=(rule(),))
    shell.client(upgrade(B, b"h2c"))
    assert shell.to(shell.taps[0]) == upgrade(B, b"h2c")
