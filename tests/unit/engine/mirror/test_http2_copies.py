"""What is copied of HTTP/2 requests: between random endpoints, and case by case."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.ledger import Ledger, TapLimits
from sidestep.engine.mirror.notes import Lost
from sidestep.policy.route import Route, Rule
from sidestep.protocols.http2 import DEFAULT_LIMITS
from tests.effort import examples
from tests.unit.engine.http2.test_differential import SMALL, Scene, exchanges, initial
from tests.unit.engine.http2_peers import MATCH, Endpoint, Message, Peers, plain, reply, request, rule

pytestmark = pytest.mark.timeout(600)  # seconds; a minute of work, on a machine that may be busy

TAPS = (rule("t1", (b"x-one", b"a")), Rule("t2", "shop/t2", lambda method, path, fields: True))


calm = settings(
    deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


class Tapped(Scene):
    """A scene with two wiretaps, one of which copies everything."""

    def __init__(self, plans, rng, configs, limits, tap_settings):
        super().__init__(plans, rng, configs, limits)
        self.ledger = Ledger(TapLimits(copy=1 << 24, tap=1 << 26))
        peers = self.peers
        other = Peers(
            self.client,
            self.app,
            handler=lambda rule: self._end(rule, peers, tap_settings),
            limits=limits,
            rng=rng,
            chunk=peers.chunk,
            taps=TAPS,
            ledger=self.ledger,
        )
        other.check = self.check
        self.inner, self.peers = peers, other
        self.copies: dict[str, list[Endpoint]] = {}

    def _end(self, rule, peers, tap_settings):
        if rule.uid not in ("t1", "t2"):
            return peers.handler(rule)
        # A few bytes at a time: a small answer, as in `Scene`.
        answer = b"x" * (60 if peers.chunk < 100 else 5000)
        end = Endpoint(answer=reply(b"tap", answer), settings=tap_settings, rng=self.peers.rng)
        self.copies.setdefault(rule.uid, []).append(end)
        return end


def _whole(message: Message, sent: Message) -> None:
    assert message.head == plain(sent.head)
    assert message.body == sent.body
    assert message.trailers == sent.trailers
    assert message.ended


@calm
@given(
    st.lists(exchanges(matches=st.booleans(), resets=False), max_size=6),
    st.integers(),
    st.tuples(initial, initial, initial),
    initial,
)
def test_copies_are_exact_and_nobody_else_sees_a_difference(plans, seed, configs, tap_settings):
    rng = random.Random(seed)
    scene = Tapped(plans, rng, list(configs), DEFAULT_LIMITS, tap_settings)
    scene.run([], rng)
    scene.judge()
    for uid, tap in (("t1", TAPS[0]), ("t2", TAPS[1])):
        wanted = [plan.request for plan in plans if tap.matches(b"", b"", plan.request.head)]
        seen = [message for end in scene.copies.get(uid, []) for message in end.seen.values() if message.head]
        assert len(seen) == len(wanted)
        assert len(scene.copies.get(uid, [])) <= 1
        for request_sent in wanted:
            _whole(next(each for each in seen if each.head == plain(request_sent.head)), request_sent)
    assert scene.ledger.count == len(scene.copies)  # their connections
    scene.peers.shell.farewell()
    assert scene.ledger.count == 0


@calm
@given(
    st.lists(exchanges(matches=st.booleans(), resets=True), max_size=6),
    st.integers(),
    st.tuples(initial, initial, initial),
    initial,
)
def test_a_copy_is_whole_or_reset(plans, seed, configs, tap_settings):
    rng = random.Random(seed)
    scene = Tapped(plans, rng, list(configs), SMALL, tap_settings)
    scene.run([], rng)
    scene.judge()
    scene.peers.shell.farewell()
    for ends in scene.copies.values():
        for message in (message for end in ends for message in end.seen.values() if message.head):
            sent = next(plan.request for plan in plans if plain(plan.request.head) == message.head)
            if message.ended:
                _whole(message, sent)
            else:
                assert sent.body.startswith(message.body)
                assert message.reset is not None
    assert scene.ledger.count == 0


def _scene(*, taps=(TAPS[1],), ledger=None, handler=None):
    client = Endpoint()
    app = Endpoint(answer=reply(b"app"))
    peers = Peers(
        client,
        app,
        handler=handler or (lambda _: Endpoint(answer=reply(b"tap"))),
        taps=taps,
        ledger=ledger,
    )
    return client, app, peers


def test_a_handler_that_is_not_there_is_nobodys_matter():
    client, _, peers = _scene(handler=lambda _: None)
    streams = [client.send(request(b"/%d" % number, method=b"POST", body=b"x" * 1000)) for number in range(3)]
    peers.run()
    assert all(client.seen[stream].ended for stream in streams)
    assert peers.relay.anomaly is None


def test_one_stream_that_overflows_is_reset_and_its_original_goes_on():
    ledger = Ledger(TapLimits(copy=100_000))
    taps = []

    def slow(_):
        end = Endpoint(answer=reply(b"tap"))
        end.give = lambda: False  # no window is given back
        taps.append(end)
        return end

    client, app, peers = _scene(ledger=ledger, handler=slow)
    large = client.send(request(b"/large", method=b"POST", body=b"x" * 400_000))
    small = client.send(request(b"/small"))
    peers.run()
    assert client.seen[large].ended
    assert len(app.seen[large].body) == 400_000
    seen = {dict(each.head)[b":path"]: each for each in taps[0].seen.values() if each.head}
    large_copy = seen.get(b"/large")  # it may overflow before the handler has sent its SETTINGS
    assert large_copy is None or (large_copy.reset is not None and not large_copy.ended)
    assert seen[b"/small"].ended
    assert client.seen[small].ended


def test_beside_an_intercept_both_are_served():
    tapped = Endpoint(answer=reply(b"tap"))
    client, _, peers = _scene(handler=lambda rule: tapped if rule.uid == "t2" else Endpoint(answer=reply(b"handler")))
    diverted = client.send(request(b"/d", MATCH, method=b"POST", body=b"abc"))
    relayed = client.send(request(b"/r", method=b"POST", body=b"def"))
    peers.run()
    assert dict(client.seen[diverted].head)[b"server"] == b"handler"
    assert dict(client.seen[relayed].head)[b"server"] == b"app"
    assert sorted(each.body for each in tapped.seen.values() if each.head) == [b"abc", b"def"]


def test_heads_only_tells_and_copies_nothing():
    flows = Rule("f", "shop/f", lambda method, path, fields: True, heads_only=True)
    client, _, peers = _scene(taps=(flows,))
    told = []
    peers.check = lambda: told.extend(peers.mirror.notes)
    client.send(request(b"/x?y", (b"authorization", b"Bearer s3cret"), (b"x-a", b"1")))
    peers.run()
    assert not peers.taps
    assert told[0].path == b"/x?y"
    assert told[0].lost is Lost.NOTHING
    assert (b"authorization", b"[redacted]") in told[0].fields
    assert (b"x-a", b"1") in told[0].fields


def test_the_connection_to_the_handler_ends_after_the_client():
    client, _, peers = _scene()
    client.send(request(b"/x"))
    peers.run()
    (leg,) = peers.shell.taps
    peers.lose(client)
    assert peers.relay.done
    peers.shell.farewell()
    assert leg.ending is Ending.CLOSE


def test_a_route_with_taps_changes_nothing_of_what_the_app_gets():
    client, _, peers = _scene()
    peers.port.route = Route((), (TAPS[1],))
    for number in range(20):
        client.send(request(b"/%d" % number, (b"x-n", b"%d" % number), method=b"POST", body=b"y" * number))
    peers.run()
    relay = peers.relay
    assert peers.sent[relay.app] == peers.got[relay.client]
    assert peers.sent[relay.client] == peers.got[relay.app]


def test_of_streams_that_are_held_back_nothing_is_noted():
    ledger = Ledger()
    ledger.gate.spend(0.25, 0.0)
    client, _, peers = _scene(ledger=ledger)
    for number in range(3):
        client.send(request(b"/%d" % number, method=b"POST", body=b"abc"))
    peers.run()
    assert not peers.taps
    assert not peers.mirror.notes
    assert sum(ledger.gate.take_losses().values()) == 3
    ledger.gate.expire(60.0)
    client.send(request(b"/again"))
    peers.run()
    assert len(peers.taps) == 1
