"""What tells a refusal of the certificate from other ends, on real connections."""

import socket
import ssl
import struct

import pytest

from sidestep.proxy.egress.refusal import AT_ONCE, LEAST, Refusal, RefusalWatch, is_refusal
from tests.harness.waiting import until
from tests.unit.proxy.io.test_stream import connection, ends, version

__all__ = ["ends", "version"]


class Watched:
    def __init__(self, guesses=True):
        self.now, self.guesses = 100.0, guesses
        self.watch = RefusalWatch(lambda: self.now, lambda: self.guesses)

    def relayed(self, client):
        self.watch.answers(client.sock)
        self.watch.relays(client.sock)


def met(stream):
    """Read until the peer's end, or its break, was met."""

    def look():
        try:
            return stream.read() == b""
        except OSError:
            return True

    until(look, within=5, what="the end")


def reset(stream):
    stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.sock.close()


LEAVES = {
    "close": lambda client: client.sock.close(),
    "reset": reset,
    "notify": lambda client: (client.finish(notify=True), client.sock.close()),
}


@pytest.mark.parametrize("way", LEAVES)
def test_a_client_that_leaves_at_once_with_nothing_said_refuses_where_guesses_count(ends, way):
    client, served = ends
    some, other = Watched(), Watched(guesses=False)
    for each in (some, other):
        each.relayed(served)
    LEAVES[way](client)
    met(served)
    assert some.watch.over(served) is Refusal.LIKELY
    assert other.watch.over(served) is Refusal.UNKNOWN
    some.now += AT_ONCE
    assert some.watch.over(served) is Refusal.UNKNOWN


@pytest.mark.parametrize("way", LEAVES)
def test_after_the_server_has_ended_it_does_not(ends, way):
    client, served = ends
    some = Watched()
    some.relayed(served)
    served.finish(notify=True)
    LEAVES[way](client)
    met(served)
    assert some.watch.over(served) is Refusal.UNKNOWN


def test_one_that_is_still_there_does_not(ends):
    _, served = ends
    some = Watched()
    some.relayed(served)
    assert some.watch.over(served) is Refusal.UNKNOWN
    assert some.watch.broke_silence(served) is Refusal.UNKNOWN


def test_one_that_has_said_as_much_as_a_request_does_not(ends):
    client, served = ends
    some = Watched()
    some.relayed(served)
    client.write(b"x" * LEAST)
    client.sock.close()
    met(served)
    assert some.watch.over(served) is Refusal.NO


def test_nor_does_one_that_had_spoken_before_it_was_relayed(ends):
    client, served = ends
    some = Watched()
    some.watch.answers(served.sock)
    some.watch.relays(served.sock, has_spoken=True)
    assert some.watch.has_accepted(served.sock)
    client.sock.close()
    met(served)
    assert some.watch.over(served) is Refusal.NO


def test_one_that_had_ended_before_it_was_answered_does_not():
    client, server = connection()
    some = Watched()
    with server:
        client.close()
        some.watch.answers(server)
        assert some.watch.broke(ConnectionResetError()) is Refusal.UNKNOWN


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError(), ssl.SSLEOFError()])
def test_the_end_of_a_handshake_refuses_once_it_was_answered(error):
    client, server = connection()
    some = Watched()
    with client, server:
        assert some.watch.broke(error) is Refusal.UNKNOWN
        some.watch.answers(server)
        assert some.watch.broke(error) is Refusal.LIKELY
        assert some.watch.broke(TimeoutError()) is Refusal.UNKNOWN
        some.guesses = False
        assert some.watch.broke(error) is Refusal.UNKNOWN


@pytest.mark.parametrize(
    ("reason", "refuses"),
    [
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("SSLV3_ALERT_BAD_CERTIFICATE", True),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", True),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", False),
        ("TLSV1_ALERT_USER_CANCELLED", False),
        ("", False),
    ],
)
def test_alerts(reason, refuses):
    assert is_refusal(reason) is refuses
