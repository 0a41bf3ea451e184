"""`Upgrade: h2c`: the connection goes on in the HTTP/2 engine, whatever arrived together with the 101."""

import hpack
import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import Ending, Role
from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.whole_connection import copy_whole
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.engine.relay import OnUnreadable
from sidestep.engine.rewriting import ClientCertificate
from sidestep.policy.route import Route, Rule, SteeredPort
from sidestep.protocols.http2 import PREFACE, SETTINGS_ACK, header_frames, settings
from tests.unit.engine.http2_peers import MATCH, request, rule
from tests.unit.engine.shell import Shell

ASK = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: %b\r\n\r\n"
ASKED = ASK % b"AAMAAABkAARAAAAA"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
FROM_APP = settings({}) + header_frames(1, b"\x88", end_stream=True)


def begun(asked=ASKED, *, tls=False, **options):
    relay = Http1Relay(SteeredPort(80, Route((rule(),))), tls=tls, **options)
    relay.app.open = True
    relay.receive(relay.client, asked, 0.0)
    assert b"".join(relay.app.out) == asked
    relay.app.out.clear()
    return relay


def written(leg):
    data = b"".join(leg.out)
    assert leg.queued == len(data)
    return data


@pytest.mark.parametrize("cut", [0, 5, len(FROM_APP)])
def test_the_http2_engine_goes_on(cut):
    relay = begun()
    relay.receive(relay.app, SWITCHED + FROM_APP[:cut], 0.0)
    successor = relay.successor
    assert isinstance(successor, Http2Relay)
    assert (successor.client, successor.app, successor.protocol) == (relay.client, relay.app, "h2")
    assert not relay.reads(relay.client)
    assert not relay.reads(relay.app)
    if cut < len(FROM_APP):
        successor.receive(successor.app, FROM_APP[cut:], 0.0)
    assert written(successor.client) == SWITCHED + FROM_APP
    assert successor.idle
    hello = PREFACE + settings({}) + SETTINGS_ACK
    successor.receive(successor.client, hello, 0.0)
    assert b"".join(successor.app.out) == hello
    block = hpack.Encoder().encode(request(b"/", MATCH).head)
    successor.receive(successor.client, header_frames(3, block, end_stream=True), 0.0)
    [leg] = successor.opening
    assert leg.role is Role.HANDLER
    assert b"".join(successor.app.out) == hello


def test_what_the_client_said_meanwhile_is_read_as_http2():
    relay = begun()
    hello = PREFACE + settings({})
    relay.receive(relay.client, hello, 0.0)  # too early, but the app may not mind
    assert not relay.app.out
    relay.receive(relay.app, SWITCHED, 0.0)
    assert b"".join(relay.successor.app.out) == hello


def test_a_client_that_has_finished_gets_a_wire():
    relay = begun()
    relay.receive_eof(relay.client, 0.0)
    relay.receive(relay.app, SWITCHED + FROM_APP, 0.0)
    assert relay.successor is None
    assert written(relay.client) == SWITCHED + FROM_APP
    assert relay.app.ending is Ending.FINISH


@pytest.mark.parametrize(
    "asked",
    [
        ASKED.replace(b"HTTP2-Settings: AAMAAABkAARAAAAA\r\n", b""),
        ASKED.replace(b"\r\n\r\n", b"\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"),
        ASK % b"AAMAAAB",
        ASK % b"AAT_____",  # INITIAL_WINDOW_SIZE of 2**32 - 1
    ],
    ids=["none", "two", "cut", "out of range"],
)
def test_without_proper_settings_it_is_a_wire(asked):
    relay = begun(asked)
    relay.receive(relay.app, SWITCHED + FROM_APP, 0.0)
    assert relay.successor is None
    assert relay.wired == (relay.client, relay.app)
    assert written(relay.client) == SWITCHED + FROM_APP


def test_over_tls_it_is_a_wire():
    relay = begun(tls=True)
    relay.receive(relay.app, SWITCHED + FROM_APP, 0.0)
    assert relay.successor is None
    assert relay.wired is not None


def test_another_protocol_is_a_wire():
    relay = begun()
    relay.receive(relay.app, SWITCHED.replace(b"h2c", b"websocket"), 0.0)
    assert relay.successor is None
    assert relay.wired is not None


def test_a_refused_upgrade_goes_on_in_http1():
    relay = begun()
    relay.receive(relay.app, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0.0)
    assert relay.successor is None
    assert relay.idle


def test_where_heads_are_rewritten_it_is_closed():
    relay = begun(on_unreadable=OnUnreadable.CLOSE, rewriter=ClientCertificate(None))
    relay.receive(relay.app, SWITCHED + FROM_APP, 0.0)
    assert relay.successor is None
    assert relay.done


def test_a_tapped_connection_goes_on_tapped():
    mirror = Mirror()
    copy_whole(mirror, [Rule("tap", "shop/tap", lambda *_: False)], Ledger())
    first = Http1Relay(SteeredPort(80, Route((rule(),))), tls=False, mirror=mirror)
    shell = Shell(first, app_open=True, auto=False)
    shell.late = True
    shell.copy()
    [tap] = shell.taps
    shell.open(tap)
    shell.client(ASKED)
    shell.app(SWITCHED + FROM_APP)
    assert isinstance(first.successor, Http2Relay)
    shell.relay = relay = first.successor
    assert (relay.successor, relay.protocol) == (None, "h2")
    assert relay.mirror is mirror
    hello = PREFACE + settings({})
    shell.client(hello)
    shell.copy()
    assert shell.to_app == ASKED + hello
    assert shell.to(tap) == ASKED + hello
    assert tap in shell.taps


def test_a_stream_with_the_number_of_an_earlier_request_is_copied_for_itself():
    """HTTP/1 requests are counted, HTTP/2 streams have ids: 3 is both, and its events wait together."""
    one, two = (
        Rule(f"uid-{name}", name, lambda method, path, fields, name=name: (b"x-dev", name.encode()) in fields)
        for name in ("one", "two")
    )
    ledger = Ledger()
    port = SteeredPort(80, Route((), (one, two)))
    first = Http1Relay(port, tls=False, mirror=wiretap_mirror(ledger, port=80), budget=ledger.budget)
    shell = Shell(first, app_open=True, late=True)
    asked = ASKED[:-2] + b"X-Dev: one\r\n\r\n"
    for _ in range(2):
        shell.client(b"GET / HTTP/1.1\r\nHost: a\r\nX-Dev: one\r\n\r\n")
        shell.app(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    shell.client(asked)
    shell.app(SWITCHED + FROM_APP)
    shell.relay = first.successor
    block = hpack.Encoder().encode(request(b"/two", (b"x-dev", b"two")).head)
    shell.client(PREFACE + settings({}) + SETTINGS_ACK + header_frames(3, block, end_stream=True))
    shell.copy()
    made = [(leg.uid, leg.protocol) for leg in shell.taps if isinstance(leg, CopyLeg)]
    assert made == [("uid-one", None)] * 3 + [("uid-two", "h2")]
    assert shell.to(shell.taps[2]) == asked
    assert [note.path for note in shell.notes] == [b"/", b"/", b"/", b"/two"]
