"""What answers cost flows: `python -m tests.bench.answers` prints CPU time per request of the relay, its mirror and the
lines for the daemon, with the answers told and with the requests alone, as flows were told before. Both in turns, in
one process, without sockets, TLS and the daemon.

The budget is about a whole proxy: 15 % of what a request costs it with flows of requests alone. `--whole` (as root)
measures what one costs a whole proxy now, with answers, and sets the difference against that.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.mirror.events import HEAD, NOTHING, Event, RequestHead
from sidestep.engine.mirror.gate import TapGate
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.notes import Note
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.sink import Offer
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.policy.redaction import redact
from sidestep.policy.route import Route, Rule, SteeredPort
from sidestep.policy.tracing import trace_id
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import Codec
from sidestep.proxy.mirror.recent_requests import RecentRequests
from sidestep.proxy.mirror.request_log import MOMENT, RequestLog
from tests.bench.arena import arena
from tests.bench.cpu import cpu_seconds
from tests.bench.load import h2load
from tests.harness.scene import HOST, PLAIN_PORT
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

    relay: Http1Relay
    counters: Counter[str] = field(default_factory=Counter)
    recent: RecentRequests = field(default_factory=RecentRequests)
    outward: None = None
    tls: bool = False
    tls_facts: None = None
    host: str = "10.1.2.3"
    client: str = "10.1.2.4"
    client_port: int = 45678

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


def exchange(mirror: Mirror) -> Callable[[], None]:
    """One request and its answer on a connection with this mirror, and its line."""
    relay = Http1Relay(SteeredPort(80, Route(wiretaps=(FLOWS,))), tls=False, mirror=mirror)
    relay.app.open = True
    clock, link = _Clock(), _Link()
    connection = _Connection(relay)
    log = RequestLog(cast("Any", clock), cast("Any", link))

    def run() -> None:
        for leg, data in ((relay.client, ASKED), (relay.app, ANSWERED)):
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


def in_turns() -> tuple[float, float]:
    """Microseconds a request, with answers and of requests alone: of the least of many turns."""
    gate = TapGate(0.0)
    told = exchange(wiretap_mirror(Ledger(gate=gate), port=80, tells=True))
    alone = exchange(Mirror(lambda mirror: (_RequestsAlone(mirror),)))
    least = [float("inf"), float("inf")]
    for _ in range(TURNS):
        for index, work in enumerate((told, alone)):
            began = time.process_time()
            for _ in range(CALLS):
                work()
            least[index] = min(least[index], (time.process_time() - began) / CALLS * 1e6)
    return least[0], least[1]


def of_a_proxy() -> list[float]:
    """Microseconds a request of a whole proxy while flows are told of each of PACE requests a second, in turns."""
    spent = []
    with tempfile.TemporaryDirectory() as folder, arena(Path(folder)) as ring:
        pid = ring.sidestep()
        for _ in range(PROXY_TURNS):
            with wiretap(ring.scene.node, str(PLAIN_PORT), command="flows", pods=None) as flows:
                until(lambda: "Ctrl-C ends it" in flows.process.output(), within=20, what=flows.process.output)
                before = cpu_seconds([pid])
                url = f"http://{HOST}:{PLAIN_PORT}/orders"
                load = h2load(ring.client, url, requests=4 * int(PACE), connections=4, http1=True, rate=PACE)
                spent.append((cpu_seconds([pid]) - before) / load.requests * 1e6)
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="also a whole proxy (root)")
    options = parser.parse_args()
    told, alone = in_turns()
    more = told - alone
    print(f"flows with answers {told:.1f} µs, requests alone {alone:.1f} µs a request: {more:.1f} µs more")
    if options.whole:
        spent = of_a_proxy()
        whole = statistics.median(spent)
        share = more / (whole - more)
        print(f"a whole proxy {whole:.0f} µs ({min(spent):.0f}-{max(spent):.0f}): answers are {share:.1%}")


if __name__ == "__main__":
    main()
