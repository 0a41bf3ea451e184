"""Hostile bytes on every leg: only documented outcomes, nothing raised, nothing kept without bound."""

from __future__ import annotations

import random

import hpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import Ending, Leg
from sidestep.engine.memory_budget import Budget
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http2 import (
    DEFAULT_LIMITS,
    PREFACE,
    SETTINGS_ACK,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    window_update,
)
from sidestep.protocols.http2 import settings as settings_frame
from tests.effort import examples
from tests.unit.engine.http2_peers import MATCH, request, rule

LIMITS = replace(DEFAULT_LIMITS, small=2000, header_block=4000, idle_frames=300, stream_window=3000, replay=1000)
BUDGET = 120_000
BOUND = 1 << 20
LARGEST = 16_384
"""What may be held beyond the budget: the last piece, and small streams of which each has one."""


def tame(rng: random.Random, encoder: hpack.Encoder, *, answers: bool, next_stream: int) -> bytes:
    """One frame that is well-formed, whether it fits the moment or not."""
    kind = rng.choice([0, 0, 0, 1, 1, 1, 2, 3, 4, 6, 7, 8, 8, 0x42])
    stream = rng.choice([1, 1, 3, 5, 7, 9, 11, next_stream])
    ends = rng.random() < 0.3
    if kind == 0:
        padding = rng.choice([None, None, 0, 5])
        body = rng.randbytes(rng.choice([0, 1, 100, 1000, 2500]))
        payload = body if padding is None else bytes((padding,)) + body + bytes(padding)
        return frame(0, ends | (0 if padding is None else 8), stream, payload)
    if kind == 1:
        if answers:
            fields = rng.choice([[(b":status", b"200")], [(b":status", b"103")], [(b"grpc-status", b"0")]])
        else:
            stream = next_stream
            fields = rng.choice([request(b"/").head, request(b"/m", MATCH).head, request(b"/m", MATCH).head])
        return header_frames(stream, encoder.encode(fields), end_stream=ends)
    if kind == 2:
        return frame(2, 0, stream, bytes(5))
    if kind == 3:
        return rst_stream(stream, rng.choice([0, 2, 7, 8]))
    if kind == 4:
        values = {Setting.INITIAL_WINDOW_SIZE: rng.choice([0, 100, 65_535]), Setting.HEADER_TABLE_SIZE: 4096}
        return SETTINGS_ACK if rng.random() < 0.6 else settings_frame(values)
    if kind == 6:
        return frame(6, rng.choice([0, 1]), 0, bytes(8))
    if kind == 7:
        return goaway(rng.choice([0, 3, 2**31 - 1]), 0) if rng.random() < 0.1 else b""
    if kind == 8:
        return window_update(rng.choice([0, stream]), rng.choice([1, 500, 5000]))
    return frame(kind, 0, 0, bytes(rng.choice([0, 20])))


def wild(rng: random.Random) -> bytes:
    """One frame of any kind, or something that looks like one."""
    kind = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x42, 255])
    stream = rng.choice([0, 1, 1, 3, 5, 7, 9, 2, 101, 0x7FFFFFFF, 0xFFFFFFFF])
    return frame(
        kind, rng.choice([0, 1, 4, 5, 8, 0x20, 0x2D, 255]), stream, rng.randbytes(rng.choice([0, 4, 5, 8, 50]))
    )


class Chaos:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.budget = Budget(BUDGET)
        self.relay = self.make()
        self.encoders: dict[Leg, hpack.Encoder] = {}
        self.dead: set[Leg] = set()
        self.next_stream = 1
        self.wildness = rng.choice([0.0, 0.0, 0.01, 0.2])
        if rng.random() < 0.95:
            self.give(self.relay.client, PREFACE + settings_frame({}))
            self.give(self.relay.app, settings_frame({}) + SETTINGS_ACK)

    def make(self) -> Http2Relay:
        return Http2Relay(SteeredPort(80, Route((rule(),))), tls=False, limits=LIMITS, budget=self.budget)

    def give(self, leg: Leg, data: bytes) -> None:
        while data:
            size = self.rng.choice([1, 9, 50, len(data)])
            if leg in self.dead or leg.ending is Ending.ABORT:
                return
            self.relay.receive(leg, data[:size], 0.0)
            data = data[size:]
            self.shell()

    def shell(self) -> None:
        relay = self.relay
        opening, relay.opening = relay.opening, []
        for leg in opening:
            if self.rng.random() < 0.8:
                relay.opened(leg, 0.0)
                if leg is not relay.app:
                    self.give(leg, settings_frame({Setting.ENABLE_CONNECT_PROTOCOL: 1}))
            else:
                self.dead.add(leg)
                relay.refused(leg, 0.0)
        for leg in relay.legs:
            assert sum(map(len, leg.out)) == leg.queued
            if leg.open or leg is relay.client:
                leg.out.clear()
                leg.queued = 0
        relay.mirror.notes.clear()
        self.measure()

    def measure(self) -> None:
        connection = self.relay._connection
        held = 0
        for exchange in connection.state.streams.exchanges.values():
            assert exchange.kept_size <= LIMITS.replay
            held += exchange.body_size + exchange.kept_size + exchange.response_size
            assert exchange.response_size <= LIMITS.stream_window
        assert len(connection.from_client.pending) < BOUND
        assert len(connection.from_app.pending) < BOUND
        assert connection.to_client.waiting < BOUND
        assert connection.decoder.memo.size <= LIMITS.memo
        assert connection.to_client.debt >= 0
        assert held <= self.budget.held <= BUDGET + LARGEST
        assert self.budget.held == connection.diversion.account.held

    def step(self) -> None:
        relay = self.relay
        live = [leg for leg in relay.legs if (leg not in self.dead and leg.open) or leg is relay.client]
        leg = self.rng.choice([relay.client, relay.client, *live])
        if leg in self.dead:
            return
        dice = self.rng.random()
        if dice < 0.002 or (dice < 0.02 and leg not in (relay.client, relay.app)):
            self.dead.add(leg)
            relay.lost(leg, 0.0)
        elif dice < 0.004:
            self.dead.add(leg)
            relay.receive_eof(leg, 0.0)
        elif self.rng.random() < self.wildness:
            self.give(leg, wild(self.rng))
        else:
            encoder = self.encoders.setdefault(leg, hpack.Encoder())
            answers = leg is not relay.client
            self.give(leg, tame(self.rng, encoder, answers=answers, next_stream=self.next_stream))
            if not answers and self.rng.random() < 0.5:
                self.next_stream += 2
        self.shell()
        for each in relay.legs:
            relay.reads(each)
        assert relay.idle in (True, False)
        if relay.wired is not None or relay.done:
            assert relay.wired is None or relay.anomaly


@settings(deadline=None, max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 64))
def test_hostile_frames_have_only_documented_outcomes(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(150):
        chaos.step()
        if chaos.relay.done or chaos.relay.wired is not None:
            break


@settings(deadline=None, max_examples=examples())
@given(st.lists(st.tuples(st.sampled_from(["client", "app"]), st.binary(min_size=1, max_size=200)), max_size=20))
def test_any_bytes_are_a_wire_or_a_connection(pieces: list[tuple[str, bytes]]) -> None:
    relay = Http2Relay(SteeredPort(80, Route((rule(),))), tls=False)
    sent = {"client": b"", "app": b""}
    for name, data in pieces:
        sent[name] += data
        relay.receive(getattr(relay, name), data, 0.0)
    if relay.wired is not None:
        assert b"".join(relay.app.out) == sent["client"]
        assert b"".join(relay.client.out) == sent["app"]
