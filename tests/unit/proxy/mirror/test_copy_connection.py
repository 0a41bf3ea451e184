"""Copies on real sockets: their handlers' legs when the engine, the connection or the copies change meanwhile."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.memory_budget import BACKLOG, Budget
from sidestep.engine.mirror.gate import Loss, Why
from sidestep.engine.mirror.ledger import Ledger, TapLimits
from sidestep.engine.mirror.request_copies import RequestCopies
from sidestep.engine.mirror.whole_connection import copy_whole
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.policy.route import Route, Rule, SteeredPort
from sidestep.proxy.connection.conductor import Conductor
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.splice import Pipes
from sidestep.proxy.io.stream import PlainStream
from sidestep.proxy.mirror.scheduler import LATE, OPENING, MirrorScheduler
from tests.unit.engine.http1.test_h2c import ASKED, FROM_APP, SWITCHED

DEADLINE = 30.0
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /t HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
EVERYTHING = Rule("uid-tap", "shop/tap", lambda *_: True)


class ConnectionHost:
    """A worker whose handlers are socket pairs: `asked` holds what each was to be spoken to in, and its other end."""

    def __init__(self, loop, stack):
        self._stack = stack
        self.loop = loop
        self.pipes = Pipes()
        self.mirror_scheduler = MirrorScheduler(loop)
        self.lingering = set()
        self.backlog = Budget(BACKLOG)
        self.asked = []
        self.attempts = 0
        self.refuses = False
        self.lost = Counter()

    def open_stream(self, info, leg, done):
        self.attempts += 1
        stream = None
        if not self.refuses:
            near, far = socket.socketpair()
            for each in (near, far):
                each.setblocking(False)
            self._stack.enter_context(far)
            self.asked.append((info.protocol, far))
            stream = PlainStream(near)
        self.loop.later(0, lambda: done(stream))
        return lambda: None

    def log_requests(self, conductor):
        self.lost.update(each.lost.name for each in conductor.relay.mirror.notes)
        conductor.relay.mirror.notes.clear()

    def closed(self, conductor):
        pass

    def release_name(self, *_):
        pass


class Scene:
    """A tapped connection between two sockets, relayed by a real conductor on a real loop."""

    def __init__(self, stack, limits=None, *, whole=False, refuses=False, protocol="http/1.1", mirror=None):
        self.crashes = []
        self.loop = Loop(on_crash=self._crashed)
        stack.callback(self.loop.close)
        self.host = ConnectionHost(self.loop, stack)
        self.host.refuses = refuses
        self.ledger = Ledger(limits, self.host.mirror_scheduler.gate)
        taps = () if whole else (EVERYTHING,)
        engine = Http2Relay if protocol == "h2" else Http1Relay
        mirror = mirror or wiretap_mirror(self.ledger, port=80)
        relay = engine(SteeredPort(80, Route((), taps)), tls=False, mirror=mirror)
        if whole:
            copy_whole(mirror, [EVERYTHING], self.ledger)
        self.client, near = socket.socketpair()
        far, self.app = socket.socketpair()
        for each in (self.client, near, far, self.app):
            each.setblocking(False)
        for each in (self.client, self.app):
            stack.enter_context(each)
        self.conductor = Conductor(
            self.loop, relay, host=self.host, port=None, endpoints=Endpoints("a", 1, "b", 2), protocol=protocol
        )
        self.conductor.attach(relay.client, PlainStream(near), watched=False)
        self.conductor.attach(relay.app, PlainStream(far), watched=False)
        self.conductor.begin()
        stack.callback(self._end)

    def _end(self):
        self.conductor.abandon()
        for leg in [*self.host.mirror_scheduler.living]:
            leg.abandon()

    def _crashed(self, owner, error):
        self.crashes.append(error)
        if owner is not None:
            owner.abandon()

    def until(self, condition):
        """Let the loop turn."""
        late = []
        guard = self.loop.later(DEADLINE, lambda: late.append(1))

        def look():
            if late or condition():
                self.loop.stop()
            else:
                self.loop.later(0.001, look)

        self.loop.later(0.0, look)
        self.loop.run()
        guard.cancel()
        assert not late
        assert condition()

    def received(self, sock, what):
        """Until these bytes have come."""
        got = bytearray()

        def some():
            with contextlib.suppress(BlockingIOError):
                got.extend(sock.recv(1 << 20))
            return len(got) >= len(what)

        self.until(some)
        assert bytes(got) == what

    def rest(self):
        """For longer than copies are put off."""
        over = []
        self.loop.later(2 * LATE, lambda: over.append(1))
        self.until(lambda: over)


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        scenes = []

        def make(*args, **options):
            scenes.append(Scene(stack, *args, **options))
            return scenes[-1]

        yield make
        for each in scenes:
            assert not each.crashes


@pytest.mark.parametrize("late", [False, True])
def test_an_upgrade_to_http2_leaves_the_copy_of_the_request_alone(scene, late):
    shop = scene()
    shop.client.send(ASKED)
    shop.received(shop.app, ASKED)
    if late:
        shop.until(lambda: shop.host.asked)
    shop.app.send(SWITCHED + FROM_APP)
    shop.received(shop.client, SWITCHED + FROM_APP)
    assert isinstance(shop.conductor.relay, Http2Relay)
    shop.until(lambda: shop.host.asked)
    [(spoken, handler)] = shop.host.asked
    assert spoken == "http/1.1"
    shop.received(handler, ASKED)
    handler.send(OK)
    shop.until(lambda: not shop.host.mirror_scheduler.living)
    assert shop.ledger.count == 0


def test_a_connection_copied_whole_is_spoken_of_as_it_began(scene):
    shop = scene(whole=True)
    shop.client.send(ASKED)
    shop.received(shop.app, ASKED)
    shop.app.send(SWITCHED + FROM_APP)
    shop.received(shop.client, SWITCHED + FROM_APP)
    shop.until(lambda: shop.host.asked)
    [(spoken, handler)] = shop.host.asked
    assert spoken == "http/1.1"
    shop.received(handler, ASKED)


def test_a_truncated_copy_is_reset_even_if_others_follow_at_once(scene):
    shop = scene(TapLimits(copy=1000))
    size = 400_000
    shop.client.send(POST % size)
    shop.received(shop.app, POST % size)
    shop.until(lambda: shop.host.asked and not shop.host.mirror_scheduler._waiting)
    [(_, handler)] = shop.host.asked
    shop.received(handler, POST % size)
    sent = bytes(size) + GET + GET
    shop.client.setblocking(True)
    shop.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    shop.client.send(sent)
    shop.received(shop.app, sent)
    shop.until(lambda: shop.host.lost["REST"])
    shop.until(lambda: len(shop.host.asked) == 3)
    shop.until(lambda: len(shop.host.mirror_scheduler.living) == 2)
    with pytest.raises(BlockingIOError):
        shop.client.setblocking(False)
        shop.client.recv(1)
    assert handler.recv(1 << 20) == b""
    for _, other in shop.host.asked[1:]:
        shop.received(other, GET)


def test_what_a_refusing_handler_did_not_get_is_counted(scene):
    shop = scene(refuses=True)
    shop.client.send(GET)
    shop.received(shop.app, GET)
    shop.until(lambda: shop.host.lost["REST"])
    assert shop.host.lost == {"NOTHING": 1, "REST": 1}
    assert shop.ledger.count == 0


def test_copies_outlive_a_client_that_leaves_at_once(scene):
    shop = scene()
    shop.client.send(GET * 20)
    shop.received(shop.app, GET * 20)
    shop.conductor.close()
    assert not shop.host.mirror_scheduler.is_idle
    shop.until(lambda: len(shop.host.asked) == 20)
    for _, handler in shop.host.asked:
        shop.received(handler, GET)
        handler.send(OK)
    shop.until(lambda: shop.host.mirror_scheduler.is_idle)
    assert shop.ledger.count == 0
    assert not shop.host.lost["REST"]


def test_nothing_is_paid_for_copies_that_are_over(scene):
    shop = scene(whole=True, refuses=True)
    shop.until(lambda: shop.host.lost["REST"])
    for _ in range(3):
        shop.client.send(GET)
        shop.received(shop.app, GET)
        shop.app.send(OK)
        shop.received(shop.client, OK)
        assert shop.host.mirror_scheduler.is_idle


def test_a_bug_in_copying_is_not_the_clients(scene):
    shop = scene()
    shop.conductor.relay.mirror.add(Broken(), 0)
    shop.client.send(GET)
    shop.received(shop.app, GET)
    shop.until(lambda: shop.crashes)
    shop.app.send(OK)
    shop.received(shop.client, OK)
    shop.client.send(GET)
    shop.received(shop.app, GET)
    shop.rest()
    assert not shop.host.asked
    assert shop.ledger.count == 0
    assert [str(error) for error in shop.crashes] == ["invalid literal for int() with base 10: 'a bug'"]
    shop.crashes.clear()


def test_a_bug_in_choosing_what_to_copy_is_not_the_clients(scene):
    shop = scene()
    broken = Broken()
    broken.wants = broken.consume
    shop.conductor.relay.mirror.add(broken, 0)
    shop.conductor.relay.mirror.queue.events.clear()
    exchange(shop, 2)
    shop.until(lambda: shop.crashes)
    exchange(shop, 1)
    assert not shop.host.asked
    assert len(shop.crashes) == 1
    shop.crashes.clear()


def test_a_bug_in_what_owns_a_copy_is_not_the_clients(scene, monkeypatch):
    shop = scene()
    shop.client.send(GET)
    shop.received(shop.app, GET)
    shop.until(lambda: shop.host.asked and any(each.stream for each in shop.host.mirror_scheduler.living))
    reads, broken = RequestCopies.reads, []

    def broken_once(self, leg):
        """The first copy has the bug; that of a later request may have been asked for meanwhile."""
        if not broken:
            broken.append(leg)
        return int("a bug") if leg is broken[0] else reads(self, leg)

    monkeypatch.setattr(RequestCopies, "reads", broken_once)
    shop.app.send(OK)
    shop.received(shop.client, OK)
    exchange(shop, 1)
    shop.until(lambda: shop.crashes)
    exchange(shop, 2)
    shop.rest()
    assert shop.host.mirror_scheduler.is_idle
    assert shop.ledger.count == 0
    assert len(shop.crashes) == 1
    shop.crashes.clear()


class Broken:
    """A sink with a bug."""

    def wants(self, exchange, offer):
        return 0

    def holds(self, exchange):
        return 0

    def consume(self, event, offer=None):
        int("a bug")


def exchange(shop, count):
    """So many requests, one after the other, all of which the app answers."""
    for _ in range(count):
        shop.client.send(GET)
        shop.received(shop.app, GET)
        shop.app.send(OK)
        shop.received(shop.client, OK)


def test_a_handler_that_refuses_is_asked_rarely_and_gets_copies_again_once_it_does_not(scene):
    shop = scene(refuses=True)
    exchange(shop, 50)
    shop.until(lambda: not shop.ledger.gate.is_closed("uid-tap"))
    shop.rest()
    attempts = shop.host.attempts
    assert attempts <= 2 * OPENING
    shop.client.send(GET)
    shop.received(shop.app, GET)
    assert not shop.conductor.relay.mirror.events  # nothing at all is kept of it
    shop.app.send(OK)
    shop.received(shop.client, OK)
    exchange(shop, 20)
    assert shop.host.attempts <= attempts + 1
    told = shop.ledger.gate.take_losses()
    assert [loss.why for loss in told] == [Why.HANDLER]
    assert sum(told.values()) >= 20
    shop.host.refuses = False

    deadline = time.monotonic() + DEADLINE
    while not shop.host.asked and time.monotonic() < deadline:
        exchange(shop, 1)
        shop.rest()
    [(_, handler)] = shop.host.asked[:1]
    shop.received(handler, GET)
    handler.send(OK)
    shop.until(lambda: shop.ledger.gate.is_closed("uid-tap"))
    exchange(shop, 1)
    shop.until(lambda: len(shop.host.asked) >= 2)
    shop.rest()


@pytest.mark.parametrize("answer", [b"\x15\x03\x03\0\2\2\x46", b"", None], ids=["TLS", "reset", "silence"])
def test_what_a_handler_says_tells_whether_it_is_one(scene, answer):
    """Silence is no failure: a handler that only listens is one."""
    shop = scene()
    for _ in range(7):
        exchange(shop, 1)
        shop.until(lambda: shop.host.asked or not shop.ledger.gate.is_closed("uid-tap"))
        while shop.host.asked:
            _, handler = shop.host.asked.pop()
            shop.received(handler, GET)
            if answer:
                handler.send(answer)
            if answer is not None:
                handler.close()
            shop.rest()
    assert shop.ledger.gate.is_closed("uid-tap") is (answer is None)


def test_a_handler_that_answers_what_is_no_http2_is_dead(scene):
    shop = scene(protocol="h2")
    peer = H2Connection(H2Configuration(client_side=True))
    peer.initiate_connection()
    for stream in range(1, 15, 2):
        peer.send_headers(stream, [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")], True)
        shop.client.send(peer.data_to_send())
        shop.until(lambda: shop.host.asked or not shop.ledger.gate.is_closed("uid-tap"))
        while shop.host.asked:
            _, handler = shop.host.asked.pop()
            handler.send(b"\x15\x03\x03\0\2\2\x46")
            handler.close()
            shop.rest()
    assert not shop.ledger.gate.is_closed("uid-tap")


@pytest.mark.alone  # the time that copies may take is counted
def test_not_more_is_asked_at_once_than_tells_whether_the_handler_is_there(scene):
    shop = scene()
    shop.client.send(GET * 60)
    shop.received(shop.app, GET * 60)
    shop.rest()
    assert shop.host.attempts == 60  # none is lost: what is queued is asked for as others are answered
    assert not shop.host.mirror_scheduler._queued


@pytest.mark.alone  # as above
def test_copies_take_their_share_of_the_time(scene):
    shop = scene()
    shop.host.mirror_scheduler.spend(0.25)
    exchange(shop, 50)
    shop.rest()
    assert shop.host.attempts == 0
    assert shop.ledger.gate.take_losses() == {Loss(80, "uid-tap", Why.BUDGET): 50}
    shop.until(lambda: not shop.ledger.gate.holds)
    exchange(shop, 1)
    shop.until(lambda: shop.host.asked)
    shop.rest()


def test_a_bug_while_a_copy_is_connected_ends_this_copy(scene, monkeypatch):
    """Whoever brings the connection does not know whose it is."""
    shop = scene()
    monkeypatch.setattr(RequestCopies, "reads", lambda self, leg: int("a bug"))
    exchange(shop, 1)
    shop.until(lambda: shop.crashes)
    assert shop.host.mirror_scheduler.is_idle
    assert shop.ledger.count == 0
    assert len(shop.crashes) == 1
    shop.crashes.clear()
