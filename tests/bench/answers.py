"""What answers cost flows: `python -m tests.bench.answers` prints CPU time per request of the relay, its mirror and the
lines for the daemon, with the answers told and with the requests alone, as flows were told before: over HTTP/1.1, over
HTTP/2, and of clients that came over TLS, whose facts stand on each line. All in turns, in one process, without
sockets, TLS and the daemon.

The budget is about a whole proxy: 15 % of what a request costs it with flows of requests alone. `--whole` (as root)
measures what one costs a whole proxy now, with answers, and sets the difference against that, for each of these.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast

import hpack

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.mirror.events import HEAD, NOTHING, Event, RequestHead
from sidestep.engine.mirror.gate import TapGate
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.notes import Note
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.sink import Offer
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.engine.relay import Relay
from sidestep.policy.redaction import redact
from sidestep.policy.route import Route, Rule, SteeredPort
from sidestep.policy.tracing import trace_id
from sidestep.protocols.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS_ACK,
    frame,
    settings,
    window_update,
)
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import Codec
from sidestep.proxy.mirror.recent_requests import RecentRequests
from sidestep.proxy.mirror.request_log import MOMENT, RequestLog
from tests.bench.arena import arena
from tests.bench.cpu import cpu_seconds
from tests.bench.load import h2load
from tests.harness.scene import HOST, PLAIN_PORT, TLS_PORT
from tests.harness.taps import wiretap
from tests.harness.waiting import until

TURNS, CALLS = 100, 300
PROXY_TURNS, PACE = 5, 500.0
"""Turns with a whole proxy, and requests a second: at more of them flows are not told of all."""
ASKED = (
    b"GET /orders HTTP/1.1\r\nHost: orders.shop.test\r\nUser-Agent: bench/1.0\r\nAccept: application/json\r\n"
    b"Cookie: session=0123456789abcdef\r\nX-Request-Id: 7f3c9a2e\r\nAccept-Encoding: gzip\r\n\r\n"
)
ANSWERED = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
ASKED_FIELDS = (
    (b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"orders.shop.test"), (b":path", b"/orders"),
    (b"user-agent", b"bench/1.0"), (b"accept", b"application/json"), (b"cookie", b"session=0123456789abcdef"),
    (b"x-request-id", b"7f3c9a2e"), (b"accept-encoding", b"gzip"),
)  # fmt: skip
ANSWERED_FIELDS = (
    (b":status", b"200"),
    (b"server", b"nginx"),
    (b"content-type", b"text/plain"),
    (b"content-length", b"5"),
)
FACTS = messages.LoggedTls(
    "TLSv1.3",
    "TLS_AES_256_GCM_SHA384",
    "http/1.1",
    "orders.shop.test",
    "",
    "7" * 32,
    "t13d1516h2_8daaf6152771_e5627efa2ab1",
)
KINDS = ("HTTP/1", "HTTP/2", "HTTP/1 over TLS", "HTTP/2 over TLS")
FLOWS = Rule("u" * 36, "shop/flows", lambda method, path, fields: True, needle=b"", heads_only=True)


class _RequestsAlone:
    """A sink that tells flows of requests, and of no answer."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._chosen: dict[int, tuple[Rule, ...]] = {}

    def wants(self, exchange: int, offer: Offer) -> int:
        """The head."""
        self._chosen[exchange] = offer.decision.shown
        return HEAD

    def holds(self, exchange: int) -> int:
        """Nothing more."""
        return NOTHING

    def missed(self, exchange: int) -> None:
        """It is not told."""
        del self._chosen[exchange]

    def consume(self, event: Event) -> None:
        """Tell a request."""
        if isinstance(event, RequestHead):
            for rule in self._chosen.pop(event.exchange):
                self._mirror.notes.append(
                    Note(
                        rule,
                        event.method,
                        event.target,
                        event.authority,
                        copied=True,
                        fields=redact(event.fields),
                        at=event.at,
                        protocol=event.protocol,
                        trace=trace_id(event.fields),
                    )
                )


@dataclass
class _Clock:
    """A loop's time, which lets a thousand requests a second pass."""

    now: float = 1.0
    later: Callable[..., None] = lambda *_: None


class _Link:
    """Encodes the messages that the daemon would be sent."""

    def __init__(self) -> None:
        self._codec: Codec[messages.ToProxy] = Codec(messages.ToProxy, folds=False)
        self.sent = 0

    def next_seq(self) -> int:
        return 1

    def send(self, message: messages.Requests, *, droppable: bool) -> bool:
        self._codec.encode(message)
        self.sent += len(message.requests)
        return True


@dataclass
class _Connection:
    """What the log of requests sees of one."""

    relay: Relay
    counters: Counter[str] = field(default_factory=Counter)
    recent: RecentRequests = field(default_factory=RecentRequests)
    outward: None = None
    tls_facts: messages.LoggedTls | None = None
    host: str = "10.1.2.3"
    client: str = "10.1.2.4"
    client_port: int = 45678

    @property
    def tls(self) -> bool:
        return self.tls_facts is not None

    @property
    def port(self) -> Any:
        return self

    @property
    def endpoints(self) -> Any:
        return self

    @property
    def steered(self) -> Any:
        return self

    number: int = 80


def http1(port: SteeredPort, mirror: Mirror) -> tuple[Relay, Callable[[], tuple[bytes, bytes]]]:
    """A relay, and what gives a request and its answer."""
    return Http1Relay(port, tls=False, mirror=mirror), lambda: (ASKED, ANSWERED)


def http2(port: SteeredPort, mirror: Mirror) -> tuple[Relay, Callable[[], tuple[bytes, bytes]]]:
    """The same over HTTP/2: header blocks as after the first request, when all fields are in the tables."""
    relay = Http2Relay(port, tls=False, mirror=mirror)
    relay.app.open = True
    window = window_update(0, (1 << 31) - 1 - 65535)
    for leg, data in (
        (relay.client, PREFACE + settings({}) + window),
        (relay.app, settings({}) + SETTINGS_ACK),
        (relay.client, SETTINGS_ACK),
    ):
        relay.receive(leg, data, 1.0)
    asked, answered = _Blocks(ASKED_FIELDS), _Blocks(ANSWERED_FIELDS)
    streams = count(1, 2)

    def give() -> tuple[bytes, bytes]:
        stream = next(streams)
        ends = frame(DATA, END_STREAM, stream, b"hello")
        return asked.frame(stream, END_STREAM), answered.frame(stream) + ends

    return relay, give


class _Blocks:
    """Header blocks of one encoder, of the same fields each time."""

    def __init__(self, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        encoder = hpack.Encoder()
        self._first = encoder.encode(fields)
        self._next = encoder.encode(fields)

    def frame(self, stream: int, flags: int = 0) -> bytes:
        """A HEADERS frame."""
        block, self._first = self._first or self._next, b""
        return frame(HEADERS, END_HEADERS | flags, stream, block)


def exchange(
    mirror: Mirror,
    engine: Callable[[SteeredPort, Mirror], tuple[Relay, Callable[[], tuple[bytes, bytes]]]] = http1,
    facts: messages.LoggedTls | None = None,
) -> Callable[[], None]:
    """One request and its answer on a connection with this mirror, and its line."""
    relay, give = engine(SteeredPort(80, Route(wiretaps=(FLOWS,))), mirror)
    relay.app.open = True
    clock, link = _Clock(), _Link()
    connection = _Connection(relay, tls_facts=facts)
    log = RequestLog(cast("Any", clock), cast("Any", link))

    def run() -> None:
        asked, answered = give()
        for leg, data in ((relay.client, asked), (relay.app, answered)):
            if relay.passes(leg, data) is None:
                relay.receive(leg, data, 1.0)
                for each in (relay.app, relay.client):
                    each.out.clear()
                    each.queued = 0
        mirror.run()
        clock.now += 0.001
        log.add(connection)
        if clock.now % MOMENT < 0.001:
            log.flush()

    for _ in range(100):
        run()
    log.flush()
    assert link.sent == 100
    return run


def in_turns() -> dict[str, tuple[float, float]]:
    """Microseconds a request, with answers and of requests alone: of the least of many turns."""
    gate = TapGate(0.0)
    work = []
    for engine, facts in ((http1, None), (http2, None), (http1, FACTS), (http2, FACTS)):
        work.append(exchange(wiretap_mirror(Ledger(gate=gate), port=80, tells=True), engine, facts))
        work.append(exchange(Mirror(lambda mirror: (_RequestsAlone(mirror),)), engine))
    least = [float("inf")] * len(work)
    for _ in range(TURNS):
        for index, run in enumerate(work):
            began = time.process_time()
            for _ in range(CALLS):
                run()
            least[index] = min(least[index], (time.process_time() - began) / CALLS * 1e6)
    return dict(zip(KINDS, zip(least[::2], least[1::2], strict=True), strict=True))


def of_a_proxy(port: int, *, http1: bool) -> list[float]:
    """Microseconds a request of a whole proxy while flows are told of each of PACE requests a second, in turns."""
    spent = []
    with tempfile.TemporaryDirectory() as folder, arena(Path(folder)) as ring:
        pid = ring.sidestep()
        for _ in range(PROXY_TURNS):
            with wiretap(ring.scene.node, str(port), command="flows", pods=None) as flows:
                until(lambda: "Ctrl-C ends it" in flows.process.output(), within=20, what=flows.process.output)
                before = cpu_seconds([pid])
                url = f"http{'s' if port == TLS_PORT else ''}://{HOST}:{port}/orders"
                load = h2load(ring.client, url, requests=4 * int(PACE), connections=4, http1=http1, rate=PACE)
                spent.append((cpu_seconds([pid]) - before) / load.requests * 1e6)
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="also a whole proxy (root)")
    options = parser.parse_args()
    for kind, (told, alone) in in_turns().items():
        more = told - alone
        print(f"{kind}: with answers {told:.1f} µs, requests alone {alone:.1f} µs a request: {more:.1f} µs more")
        if options.whole and kind != "HTTP/2":  # the nginx of the arena speaks it over TLS only
            spent = of_a_proxy(TLS_PORT if "TLS" in kind else PLAIN_PORT, http1="HTTP/1" in kind)
            whole = statistics.median(spent)
            share = more / (whole - more)
            print(f"  a whole proxy {whole:.0f} µs ({min(spent):.0f}-{max(spent):.0f}): answers are {share:.1%}")


if __name__ == "__main__":
    main()
