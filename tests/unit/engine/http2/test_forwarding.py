"""HTTP/2 with the client's identity passed on, between independent endpoints."""

import pytest

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import Ending
from sidestep.engine.relay import OnUnreadable
from sidestep.engine.rewriting import ClientCertificate
from sidestep.protocols.http2 import PREFACE
from tests.unit.engine.http2_peers import MATCH, Endpoint, Message, Peers

NAME = b"x-forwarded-client-cert"
OK = [(b":status", b"200")]


def head(path, *extra):
    return [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", path), *extra]


def answer(fields):
    return Message(head=OK, pieces=[b"body"], trailers=[(NAME, b"the app's own")], ended=True)


def forwarding(client, app, *, value=b"Hash=1", **options):
    def relay(port):
        return Http2Relay(port, tls=True, on_unreadable=OnUnreadable.CLOSE, rewriter=ClientCertificate(value))

    return Peers(client, app, relay=relay, **options)


@pytest.mark.parametrize("chunk", [1, 13, 1 << 20])
def test_every_request_is_rewritten_and_nothing_else(chunk):
    client, app, handler = Endpoint(), Endpoint(answer=answer), Endpoint(answer=answer)
    peers = forwarding(client, app, handler=lambda rule: handler, chunk=chunk)
    spoofs = [(NAME, b"Hash=2"), (b"x_forwarded_client_cert", b"Hash=3"), (b"cookie", b"a=b")]
    for path in (b"/a", b"/b", b"/a"):
        for extra in ([], spoofs, [MATCH, *spoofs], spoofs):
            plan = Message(
                head=head(path, *extra), pieces=[b"x"], trailers=[(NAME, b"Hash=4"), (b"t", b"1")], ended=True
            )
            client.send(plan)
    peers.run()
    assert len(app.seen) == 9
    assert len(handler.seen) == 3
    for end in (app, handler):
        for message in end.seen.values():
            assert [value for name, value in message.head if b"client" in name] == [b"Hash=1"]
            assert message.trailers == [(b"t", b"1")]
            assert message.body == b"x"
    for message in client.seen.values():
        assert message.head == OK
        assert message.trailers == [(NAME, b"the app's own")]
    assert len(client.seen) == 12


def test_without_a_verified_client_only_the_spoof_goes():
    client, app = Endpoint(), Endpoint(answer=answer)
    client.send(Message(head=head(b"/", (NAME, b"Hash=2")), ended=True))
    client.send(Message(head=head(b"/"), ended=True))
    forwarding(client, app, value=None).run()
    assert [message.head for message in app.seen.values()] == [head(b"/"), head(b"/")]


@pytest.mark.parametrize("data", [b"PRI * HTTP/1.1\r\nGET", PREFACE + b"\0\0\1\1\5\0\0\0\1\xff"])
def test_what_cannot_be_read_is_closed(data):
    peers = forwarding(Endpoint(), Endpoint(answer=answer))
    relay = peers.relay
    relay.receive(relay.client, data, 0.0)
    assert relay.done
    assert relay.wired is None
    assert b"GET" not in b"".join(relay.app.out)
    assert b"\xff" not in b"".join(relay.app.out)


def test_an_app_that_does_not_speak_http2_gets_no_wire():
    for ends in (True, False):
        peers = forwarding(Endpoint(), None)
        relay = peers.relay
        relay.app.open = True
        client = peers.client
        client.send(Message(head=head(b"/", MATCH, (NAME, b"Hash=2")), ended=True))
        client.work()
        relay.receive(relay.client, client.take(), 0.0)
        if ends:
            relay.receive_eof(relay.app, 0.0)
        else:
            relay.receive(relay.app, b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.0)
        assert relay.done
        assert relay.wired is None
        assert relay.client.ending is Ending.CLOSE
        assert b"Hash=2" not in b"".join(relay.app.out)
