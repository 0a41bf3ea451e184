"""Attacks that a firewall may fail to recognise: under Enforce and Fail the app gets no byte of them; under Detect they
reach it, and each is recorded.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import h2.exceptions
import pytest
from hpack import Decoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from tests.harness import scene
from tests.harness.evasions import HTTP1, HTTP1_UNREADABLE, HTTP2, HTTP2_UNREADABLE, QUERY, Frames
from tests.harness.http1 import ClosedError
from tests.harness.http2 import PREFACE, Http2Client, any_app
from tests.harness.inspection import view
from tests.harness.peers import Server, server_context
from tests.harness.waf import judged, waf_policy
from tests.harness.waiting import until

pytestmark = pytest.mark.long

LIMITS = {"limits": {"verdictTimeout": "10s"}}
JUDGED = {f"h1 {name}": case for name, case in HTTP1.items()} | {f"h2 {name}": case for name, case in HTTP2.items()}
UNREADABLE = {f"h1 {name}": case for name, case in HTTP1_UNREADABLE.items()}
UNREADABLE |= {f"h2 {name}": case for name, case in HTTP2_UNREADABLE.items()}
PERMISSION_DENIED = "7"
"""The status of a gRPC call that is refused."""
WITHOUT_VERDICT = {"waf_absent", "waf_busy", "waf_crash", "waf_deadline"}


def app(server, connection):
    """As `any_app`; an attack may be no HTTP/2 that the `h2` library takes."""
    with contextlib.suppress(h2.exceptions.ProtocolError):
        any_app(server, connection)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The scene with an app that speaks both versions on both ports, and keeps every byte that it gets."""
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(tmp_path_factory.mktemp("shop")))
        tls = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
        where = {"netns": shop.space.pod, "address": shop.space.ip}
        shop.app = stack.enter_context(Server(app, port=scene.TLS_PORT, tls=tls, **where))
        shop.plain_app = stack.enter_context(Server(app, port=scene.PLAIN_PORT, **where))
        yield shop


def requests(data):
    """What an app received, in HTTP/2 without its preface and the frames that belong to no request."""
    if not data.startswith(PREFACE):
        return data
    found, data = b"", data.removeprefix(PREFACE)
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        if isinstance(frame, HeadersFrame | DataFrame | ContinuationFrame):
            found += data[: 9 + length]
        data = data[9 + length :]
    return found


@dataclass
class Sent:
    """A request that was sent. `ports` are that of the client and that of the pod, by which records name the
    connection; `status` waits for what it gets: None where it is closed or reset.
    """

    ports: tuple[int, int]
    status: Callable[[], int | None]


@contextlib.contextmanager
def sent(shop, case):
    """Send a request of `evasions` on a connection of its own."""
    if isinstance(case, bytes):
        with shop.client(port=scene.PLAIN_PORT) as client:
            ports = client.sock.getsockname()[1], scene.PLAIN_PORT
            with contextlib.suppress(ConnectionError):
                client.send(case)
            yield Sent(ports, lambda: final_status(client.reader))
        return
    with shop.client(alpn=("h2",)) as client:
        ports = client.sock.getsockname()[1], scene.TLS_PORT
        talk = Http2Client(client.sock, exact=True)
        if isinstance(case, Frames):
            client.send(case.wire)
            yield Sent(ports, lambda: status_of_stream_1(client.reader))
            return
        stream = talk.begin(case.path, *case.fields, method="POST" if case.data else "GET", end=not case.data)
        answer = talk.answers[stream]
        for at, data in enumerate(case.data, 1):
            talk.send(stream, data, end=at == len(case.data))

        def status():
            talk.until(lambda: answer.ended or answer.reset is not None)
            if answer.reset is not None:
                return None
            is_refused = answer.headers.get("grpc-status") == PERMISSION_DENIED
            return 403 if is_refused else int(answer.headers[":status"])

        yield Sent(ports, status)


def final_status(reader):
    """The status of an answer of HTTP/1.1, after those of 100 Continue."""
    while (status := reader.message(answers="POST").status) == 100:
        pass
    return status


def status_of_stream_1(reader):
    """The status of its answer, None if it is reset or the connection ends."""
    while True:
        frame, length = Frame.parse_frame_header(memoryview(reader.exactly(9)))
        body = reader.exactly(length)
        if isinstance(frame, HeadersFrame):
            return int(dict(Decoder().decode(body))[":status"])
        if isinstance(frame, RstStreamFrame | GoAwayFrame):
            return None


def outcome(shop, case):
    """The status that a request gets, None where it is closed or reset."""
    try:
        with sent(shop, case) as request:
            return request.status()
    except (ClosedError, ConnectionError, ssl.SSLError):
        return None


def connections(shop):
    """All connections of the app."""
    return [*shop.app.connections, *shop.plain_app.connections]


@pytest.mark.timeout(600)
def test_no_byte_reaches_the_app_where_a_policy_enforces(shop):
    with judged(shop, waf_policy(failurePolicy="Fail", waf=LIMITS)):
        earlier = connections(shop)
        judged_ones = {name: outcome(shop, case) for name, case in JUDGED.items()}
        unreadable = {name: outcome(shop, case) for name, case in UNREADABLE.items()}
        # What the app gets of these it has before it answers a later request.
        for port in (scene.TLS_PORT, scene.PLAIN_PORT):
            assert shop.get("/fence", port=port, options=["--http1.1"]).status == 200
        seen = [requests(bytes(each.reader.received)) for each in connections(shop) if each not in earlier]
        assert view(shop)["closed"].keys().isdisjoint(WITHOUT_VERDICT)
    assert {name: status for name, status in judged_ones.items() if status != 403} == {}
    assert {name: status for name, status in unreadable.items() if status is not None} == {}
    assert [each for each in seen if each and not each.startswith(b"GET /fence ")] == []
    assert sum(each.startswith(b"GET /fence ") for each in seen) == 2


@pytest.mark.timeout(600)
def test_each_is_counted_where_a_policy_detects(shop):
    with judged(shop, waf_policy("Detect", waf=LIMITS)), contextlib.ExitStack() as stack:
        before, wanted = len(shop.node.records()), {}
        for action, cases in (("WouldBlock", JUDGED), ("Pass", UNREADABLE)):
            for name, case in cases.items():
                # Connections stay open until their records are there, so no two have the same ports.
                request = stack.enter_context(reaches_app(shop, name, case))
                wanted[name] = *request.ports, action

        def missing():
            records = shop.node.records()[before:]
            told = {(each.get("src_port"), each.get("dest_port"), each["sidestep"].get("action")) for each in records}
            return [name for name, each in wanted.items() if each not in told]

        until(
            lambda: not missing(), within=30, every=0.2,
            what=lambda: f"records of {missing()}: {view(shop)} {shop.conditions()}",
        )  # fmt: skip
        assert view(shop)["bypassed"].keys().isdisjoint(WITHOUT_VERDICT), view(shop)["bypassed"]


@contextlib.contextmanager
def reaches_app(shop, name, case):
    """Send a request, and wait until the app has it."""
    apps = (shop.app, shop.plain_app)
    earlier = [len(each.connections) for each in apps]

    def is_at_app():
        made = [each for app, count in zip(apps, earlier, strict=True) for each in app.connections[count:]]
        return any(requests(bytes(each.reader.received)) for each in made)

    with sent(shop, case) as request:
        until(is_at_app, within=10, what=lambda: f"{name} at the app: {view(shop)} {shop.conditions()}")
        yield request


def test_streams_of_an_upgraded_connection_are_judged(shop):
    with judged(shop, waf_policy(waf=LIMITS)), shop.client(port=scene.PLAIN_PORT) as client:
        talk = Http2Client(client.sock, upgrade=True)
        assert talk.request("/items?id=1").served_by == "app"
        assert talk.request(QUERY).headers[":status"] == "403"
