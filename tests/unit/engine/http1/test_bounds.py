"""What is kept and what holds a side up is bounded; when a connection is idle."""

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.leg import HIGH_WATER
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http1 import Http1Limits
from tests.unit.engine.http1.heads import OK_A, OK_B, A, B
from tests.unit.engine.shell import Shell, http1, rule


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
