"""HTTP/1 with the client's identity passed on: heads and trailers rewritten, nothing unread reaches the app."""

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.leg import Ending
from sidestep.engine.relay import OnUnreadable
from sidestep.engine.rewriting import ClientCertificate
from sidestep.policy.route import Route, SteeredPort
from tests.harness.table import each_row
from tests.unit.engine.hostile_heads import HOSTILE_BODIES, HOSTILE_HEADS
from tests.unit.engine.shell import Shell, rule

OURS = b"X-Forwarded-Client-Cert: Hash=1\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
SEEN = b"GET /a HTTP/1.1\r\nHost: a\r\n" + OURS + b"\r\n"
SPOOFED = b"GET /a HTTP/1.1\r\nx_forwarded-Client_cert: Hash=2\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def relay(*rules, value=b"Hash=1", tls=True):
    return Shell(
        Http1Relay(
            SteeredPort(8443, Route(rules or (rule(),))),
            tls=tls,
            on_unreadable=OnUnreadable.CLOSE,
            rewriter=ClientCertificate(value),
        )
    )


def in_pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_every_request_is_rewritten(size):
    shell = relay()
    for _ in range(5):  # known heads take no shortcut
        for request in (GET, SPOOFED):
            for piece in in_pieces(request, size):
                shell.client(piece)
            shell.app(OK)
    assert shell.to_app == SEEN * 10
    assert shell.to_client == OK * 10


def test_no_byte_of_the_client_passes_unread():
    shell = relay()
    for _ in range(3):
        assert shell.relay.passes(shell.relay.client, GET) is None
        shell.client(GET)
        assert shell.relay.passes(shell.relay.app, OK) is shell.relay.client


def test_without_a_verified_client_only_the_spoof_goes():
    shell = relay(value=None)
    shell.client(SPOOFED + GET)
    assert shell.to_app == GET + GET


@pytest.mark.parametrize("size", [1, 3, 50, 1000])
def test_pipelined_requests_with_bodies(size):
    post = b"POST /b HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: x\r\nContent-Length: 5\r\n\r\nhello"
    shell = relay()
    for piece in in_pieces(post + GET + post, size):
        shell.client(piece)
    seen = b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + OURS + b"\r\nhello"
    assert shell.to_app == seen + SEEN + seen


@pytest.mark.parametrize("size", [1, 2, 5, 31, 1000])
@pytest.mark.parametrize("dev", [b"", b"x-dev: me\r\n"])
def test_trailers_lose_the_spoof(size, dev):
    head = b"POST /b HTTP/1.1\r\nHost: a\r\n" + dev + b"Transfer-Encoding: chunked\r\n"
    chunks = b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n"
    shell = relay()
    sent = head + b"\r\n" + chunks + b"A: 1\r\nX_Forwarded_Client_Cert: Hash=2\r\nB: 2\r\n\r\n"
    for piece in in_pieces(sent, size):
        shell.client(piece)
    seen = head + OURS + b"\r\n" + chunks + b"A: 1\r\nB: 2\r\n\r\n"
    assert (shell.to_handler if dev else shell.to_app) == seen
    if not dev:
        shell.client(GET)
        assert shell.to_app == seen + SEEN


def test_a_diverted_request_is_rewritten_too_and_so_it_is_when_it_falls_back():
    request = GET[:-2] + b"x-dev: me\r\n\r\n"
    seen = GET[:-2] + b"x-dev: me\r\n" + OURS + b"\r\n"
    shell = relay()
    shell.client(request)
    shell.handler(OK)
    assert shell.to_handler == seen
    shell = relay()
    shell.auto = False
    shell.client(request)
    shell.refuse(shell.waiting[0])
    shell.open(shell.waiting[0])
    assert shell.to_app == seen


def test_a_filter_sees_what_the_app_sees():
    wanted = rule()
    route = type(wanted)("u", "shop/x", lambda method, path, fields: (b"x-forwarded-client-cert", b"Hash=2") in fields)
    shell = relay(route)
    shell.client(SPOOFED)
    assert shell.to_app == SEEN


@pytest.mark.unmeasured
@each_row("data", [data for _, data in HOSTILE_HEADS], ids=[name for name, _ in HOSTILE_HEADS])
def test_a_head_that_cannot_be_read_is_closed_and_never_reaches_the_app(data):
    for pieces in ([data], in_pieces(data, 20)):
        shell = relay()
        shell.client(GET)
        shell.app(OK)
        for piece in pieces:
            if not shell.relay.done:
                shell.client(piece)
        assert shell.relay.done
        assert shell.relay.anomaly.startswith("h1-")
        assert shell.to_app == SEEN
        assert shell.to_client == OK


@each_row("data", [data for _, data in HOSTILE_BODIES], ids=[name for name, _ in HOSTILE_BODIES])
def test_a_body_that_cannot_be_followed_is_closed(data):
    shell = relay(rule(header=b"nobody"))
    shell.client(data)
    assert shell.relay.done
    assert b"smuggled" not in shell.to_app
    assert shell.relay.wired is None


def test_a_head_that_does_not_come_is_closed_after_a_minute():
    shell = relay()
    shell.now = 100.0
    shell.client(b"GET / HTTP/1.1\r\nHo")
    assert shell.relay.deadline == 160.0
    shell.relay.expired(159.0)
    assert not shell.relay.done
    shell.relay.expired(160.0)
    assert shell.relay.done
    assert shell.to_app == b""


def test_a_broken_chunk_ends_the_connection():
    shell = relay()
    shell.client(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n" + SPOOFED)
    assert shell.relay.done
    assert b"Hash=2" not in shell.to_app
    assert shell.shut[shell.relay.client] is Ending.CLOSE


def test_an_app_that_closes_gets_nothing_unread():
    shell = relay()
    shell.client(GET)
    shell.app(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    assert shell.relay.done
    assert shell.to_client.endswith(b"ok")


def test_an_answer_until_the_end_of_the_connection():
    shell = relay()
    shell.client(GET)
    shell.app(b"HTTP/1.1 200 OK\r\n\r\nsome")
    shell.client(SPOOFED)
    shell.app(b" more")
    assert shell.relay.wired is None
    assert shell.to_app == SEEN + SEEN
    shell.eof(shell.relay.app)
    assert shell.relay.done
    assert shell.to_client.endswith(b"some more")


def test_a_client_that_has_finished_still_gets_its_answer():
    shell = relay()
    shell.client(GET)
    shell.eof(shell.relay.client)
    shell.app(OK)
    shell.eof(shell.relay.app)
    assert shell.to_client == OK
    assert shell.relay.done


def test_an_upgrade_is_a_wire_unless_it_is_http2():
    upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
    shell = relay()
    shell.client(upgrade % b"websocket")
    shell.app(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    shell.client(b"\x00frame")
    assert shell.to_app.endswith(OURS + b"\r\n\x00frame")
    settings = b"h2c\r\nHTTP2-Settings: AAMAAABk"
    for tls in (True, False):
        shell = relay(tls=tls)
        shell.client(upgrade % settings)
        shell.app(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
        assert shell.relay.done
