"""Wiretaps with real peers: what is copied, to whom, how exactly; and that the app's clients notice nothing of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest

from tests.harness import scene
from tests.harness.http2 import Http2Client, any_app
from tests.harness.nginx import listening_ports
from tests.harness.peers import Server, digest_of, pattern, server_context
from tests.harness.processes import Process, peak, reset_peak
from tests.harness.taps import Recorder, wiretap
from tests.harness.waiting import until

pytestmark = pytest.mark.long

TAP = ("x-tap", "1")
DEV = ("x-dev", "ada")
PORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]
VERSIONS = ["h1", "h2"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """An app and handlers that speak both versions, with TLS and in clear."""
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(tmp_path_factory.mktemp("taps")))
        both = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
        space = shop.space
        stack.enter_context(
            Server(any_app, netns=space.pod, address=space.ip, port=scene.TLS_PORT, tls=both, record=False)
        )
        shop.app = stack.enter_context(
            Server(any_app, netns=space.pod, address=space.ip, port=scene.PLAIN_PORT, record=False)
        )
        shop.both = both
        shop.handlers = {
            scene.TLS_PORT: stack.enter_context(Server(any_app, name="handler", tls=both, record=False)),
            scene.PLAIN_PORT: stack.enter_context(Server(any_app, name="handler", record=False)),
        }
        yield shop


@contextlib.contextmanager
def tapping(shop, port, *options, answers=True, record=True):
    """A recorder behind a wiretap of a port; without options, of requests with `TAP`."""
    tls = shop.both if port == scene.TLS_PORT else None
    with (
        Recorder(tls=tls, answers=answers, record=record) as recorder,
        wiretap(shop.node, f"{recorder.port}:{port}", *(options or ("--http-header", "x-tap=1"))) as running,
    ):
        recorder.running = running
        yield recorder


def everything(shop, port, recorder):
    """A global wiretap of a port."""
    return wiretap(shop.node, f"{recorder.port}:{port}")


def intercepting(shop, port, *options):
    return shop.intercept(*options, port=port, handler_port=shop.handlers[port].port)


@contextlib.contextmanager
def talking(shop, port, version):
    """One client connection: a function that sends a request and returns who served it."""
    with shop.client(port=port, alpn=("h2",) if version == "h2" else ("http/1.1",)) as client:
        if version == "h2":
            http2 = Http2Client(client.sock)
            yield lambda path, *fields, body=b"": http2.request(path, *fields, body=body).served_by
        else:

            def ask(path, *fields, body=b""):
                lines = [f"{name}: {value}" for name, value in fields]
                lines += [f"content-length: {len(body)}"] if body else []
                method = "POST" if body else "GET"
                head = "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {scene.HOST}", *lines, "", ""])
                return client.request(head.encode() + body, method=method).header("x-served-by")

            yield ask


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("port", PORTS)
def test_beside_a_filtered_intercept(shop, port, version):
    with intercepting(shop, port), tapping(shop, port) as recorder, talking(shop, port, version) as ask:
        assert ask("/neither") == "app"
        assert ask("/tapped", TAP) == "app"
        assert ask("/diverted", DEV) == "handler"
        assert ask("/both", TAP, DEV) == "handler"
        recorder.wait(2)
        assert recorder.broken == 0
    assert recorder.paths == ["/both", "/tapped"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("port", PORTS)
def test_beside_a_global_wiretap(shop, port, version):
    tls = shop.both if port == scene.TLS_PORT else None
    with (
        Recorder(tls=tls) as whole,
        everything(shop, port, whole),
        intercepting(shop, port),
        tapping(shop, port) as recorder,
        talking(shop, port, version) as ask,
    ):
        assert [ask("/a"), ask("/b", TAP), ask("/c", DEV), ask("/d", TAP, DEV)] == ["app", "app", "handler", "handler"]
        recorder.wait(2)
        whole.wait(4)
    assert recorder.paths == ["/b", "/d"]
    assert whole.paths == ["/a", "/b", "/c", "/d"]
    assert len(whole.connections) == 1


def test_a_wiretap_alone_steers_the_port_and_its_end_unsteers(shop):
    port = scene.PLAIN_PORT
    with tapping(shop, port) as recorder:
        assert shop.get("/x", "x-tap: 1", port=port).served_by == "app"
        recorder.wait(1)
    assert shop.get("/y", "x-tap: 1", port=port).served_by == "app"
    until(lambda: not any(pod["steered"] for pod in shop.node.status()["pods"]), within=10, what="nothing steered")
    assert recorder.paths == ["/x"]


def test_bodies_and_trailers_are_copied_byte_for_byte(shop):
    message = (
        b"POST /echo HTTP/1.1\r\nhOST: orders.shop.test\r\nX-Tap:   1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;ext=1\r\nhello\r\n0000A\r\n0123456789\r\n0\r\nX-Sum: 1\r\nx-OTHER:2\r\n\r\n"
    )
    with tapping(shop, scene.PLAIN_PORT) as recorder, shop.client(port=scene.PLAIN_PORT) as client:
        for cut in (len(message), 1, 40, 130):
            client.send(message[:cut])
            if cut < len(message):
                time.sleep(0.01)  # so that it arrives in two pieces
                client.send(message[cut:])
            assert client.reader.message(answers="POST").body == b"hello0123456789"
        recorder.wait(4)
        assert [connection.received for connection in recorder.connections] == [message] * 4


def test_http2_fields_data_and_trailers_are_copied_exactly(shop):
    body = bytes(range(256)) * 1000
    with tapping(shop, scene.TLS_PORT) as recorder, shop.client(port=scene.TLS_PORT, alpn=("h2",)) as client:
        http2 = Http2Client(client.sock)
        fields = [TAP, ("x-odd", "a, b;c=d"), ("cookie", "a=b"), ("cookie", "c=d"), ("x-empty", "")]
        stream = http2.begin("/echo?x=1", *fields, method="POST", end=False)
        http2.send(stream, body)
        http2.h2.send_headers(stream, [("x-sum", "1"), ("x-more", "2")], end_stream=True)
        http2.flush()
        answer = http2.answers[stream]
        http2.until(lambda: answer.ended)
        assert bytes(answer.body) == body
        (copy,) = recorder.wait(1)
    assert [each for each in copy.fields if each[0][0] != ":"] == fields
    assert dict(copy.fields)[":path"] == "/echo?x=1"
    assert copy.body == body
    assert copy.trailers == [("x-sum", "1"), ("x-more", "2")]


def test_a_websocket_is_copied_on(shop):
    upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nX-Tap: 1\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    with tapping(shop, scene.PLAIN_PORT) as recorder:
        with shop.client(port=scene.PLAIN_PORT) as client:
            client.send(upgrade)
            assert b"app ready\n" in client.reader.until(b"ready\n")
            for number in range(20):
                client.send(b"frame %d;" % number)
                client.reader.until(b"FRAME %d;" % number)
            client.finish()
        until(lambda: recorder.connections and recorder.connections[0].finished.is_set(), within=10, what="the copy")
        frames = b"".join(b"frame %d;" % number for number in range(20))
        assert recorder.connections[0].received == upgrade + frames


@pytest.mark.parametrize("port", PORTS)
def test_a_raw_connection_is_copied_whole(shop, port):
    """A global wiretap: TLS is not opened, and an app that speaks first is not waited for."""
    with Recorder() as recorder, everything(shop, port, recorder):
        assert shop.get("/x", port=port).served_by == "app"
        until(lambda: recorder.connections and recorder.connections[0].received, within=10, what="the copy")
        received = recorder.connections[0].received
        if port == scene.TLS_PORT:
            assert received[:1] == b"\x16"
        else:
            assert received.startswith(b"GET /x HTTP/1.1\r\n")


@pytest.mark.alone
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["hung", "gone", "crashing"])
def test_a_bad_handler_costs_the_app_nothing(shop, version, how):
    """Many requests, all of them tapped, while the handler never reads, is not there, or breaks every connection."""
    port = scene.PLAIN_PORT
    count = 2000 if version == "h1" else 200

    def crash(server, connection):
        connection.reader.some()
        connection.reset()

    def hang(server, connection):
        server.release.wait(60)

    with Server(crash if how == "crashing" else hang, record=False) as bad:
        if how == "gone":
            bad.close_listener()
        with (
            wiretap(shop.node, f"{bad.port}:{port}", "--http-header", "x-tap=1"),
            talking(shop, port, version) as ask,
        ):
            slowest = 0.0
            for number in range(count):
                begin = time.monotonic()
                assert ask(f"/{number}", TAP) == "app"
                slowest = max(slowest, time.monotonic() - begin)
            assert slowest < 1.0
        bad.release.set()


def test_what_does_not_fit_is_dropped_counted_and_reset(shop):
    size = 64 << 20
    with Server(lambda server, _: server.release.wait(60), name="tap", record=False) as hung:
        with wiretap(
            shop.node, f"{hung.port}:{scene.PLAIN_PORT}", "--http-path-prefix", "/digest", "--plaintext"
        ) as tap:
            assert shop.get("/", port=scene.PLAIN_PORT).served_by == "app"
            before = reset_peak(shop.proxy())
            with shop.client(port=scene.PLAIN_PORT) as client:
                client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
                for _ in range(size >> 20):
                    client.send(bytes(1 << 20))
                assert client.reader.message(answers="POST").body.endswith(b" %d\n" % size)
            until(lambda: _lost(tap), within=10, what=lambda: f"a truncated copy in {tap.events()}")
            assert _lost(tap) == ["truncated"]
            assert peak(shop.proxy()) - before < 8 << 20
            status = shop.node.status()
        hung.release.set()
    (counters,) = [each["counters"] for each in status["intercepts"]]
    assert counters["copies_truncated"] == 1
    assert counters["copied"] == 1


def _lost(tap):
    return [event["lost"] for event in tap.of("request") if event["lost"]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("port", PORTS)
def test_beside_a_global_intercept(shop, port, version):
    """The handler answers everything, in the app's place; what the tap wants is copied all the same."""
    tls = shop.both if port == scene.TLS_PORT else None
    with (
        Server(any_app, name="whole", tls=tls, record=False) as whole,
        shop.intercept("--name", "whole", port=port, handler_port=whole.port),
        tapping(shop, port) as recorder,
        talking(shop, port, version) as ask,
    ):
        assert [ask("/a"), ask("/b", TAP), ask("/c", DEV), ask("/d", TAP)] == ["whole"] * 4
        recorder.wait(2)
        assert recorder.broken == 0
    assert recorder.paths == ["/b", "/d"]


@pytest.mark.cold
@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_gigabyte_past_a_handler_that_never_reads(shop, version):
    """Every byte reaches the app, and neither proxy, daemon nor command line grow."""
    port, size = scene.TLS_PORT, 1 << 30
    with (
        Server(lambda server, _: server.release.wait(200), name="tap", tls=shop.both, record=False) as hung,
        wiretap(shop.node, f"{hung.port}:{port}", "--http-path-prefix", "/digest") as tap,
        shop.client(port=port, alpn=("h2",) if version == "h2" else ("http/1.1",), record=False) as client,
    ):
        watched = {"proxy": shop.proxy(), "daemon": shop.node.pid, "cli": tap.pid}
        if version == "h1":
            client.send(b"POST /digest HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            before = {name: reset_peak(pid) for name, pid in watched.items()}
            for piece in pattern(size):
                client.send(piece)
            answer = client.reader.message(answers="POST").body
        else:
            http2 = Http2Client(client.sock)
            stream = http2.begin("/digest", method="POST", end=False)
            before = {name: reset_peak(pid) for name, pid in watched.items()}
            for piece in pattern(size):
                http2.send(stream, piece)
            http2.send(stream, b"", end=True)
            http2.until(lambda: http2.answers[stream].ended)
            answer = bytes(http2.answers[stream].body)
        growth = {name: peak(pid) - before[name] for name, pid in watched.items()}
        hung.release.set()
        assert answer == f"{digest_of(size)} {size}\n".encode()
        assert max(growth.values()) < 20 << 20, growth


def test_a_grpc_call_is_copied(shop, tmp_path):
    """Messages and trailers of a stream of calls, by a client of grpcio, answered by the app."""
    tls = tmp_path / "tls"
    shop.app_certificate.write(tls)
    space = shop.space
    peer = [sys.executable, "-m", "tests.harness.grpc_peer"]
    with (
        Process(space.pod.enter([*peer, "serve", "app", f"{space.ip}:9090"]), log=tmp_path / "app.log") as app,
        Recorder() as recorder,
        contextlib.ExitStack() as stack,
    ):
        until(lambda: "9090" in listening_ports(space.pod), within=20, what=lambda: f"gRPC to listen\n{app.text()}")
        stack.enter_context(wiretap(shop.node, f"{recorder.port}:9090", "--http-path-prefix", "/"))
        done = subprocess.run(
            space.client.enter([*peer, "call", f"{space.ip}:9090"]),
            input=json.dumps([{"method": "Collect", "messages": ["a", "b", "c"]}]),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert json.loads(done.stdout)[0]["answers"] == ["app a+b+c"], done.stderr
        recorder.wait(1)
    (copy,) = recorder.copies
    assert dict(copy.fields)["content-type"] == "application/grpc"
    assert copy.body == b"".join(b"\0\0\0\0\x01" + message for message in (b"a", b"b", b"c"))


FLOWS = {"method": "POST", "path": "/pay?x=1", "authority": scene.HOST}


@pytest.mark.parametrize("version", VERSIONS)
def test_flows_show_heads_and_no_secrets(shop, version):
    secrets = [("authorization", "Bearer s3cret"), ("cookie", "id=s3cret"), ("proxy-authorization", "s3cret")]
    with (
        wiretap(shop.node, "", "--http-path-prefix", "/pay", command="flows", pods=None) as flows,
    ):
        until(lambda: flows.of("note"), within=10, what="flows to be active")
        with talking(shop, scene.TLS_PORT, version) as ask:
            assert ask("/other") == "app"
            assert ask("/pay?x=1", ("x-shown", "yes"), *secrets, body=b"b0dy") == "app"
        until(lambda: flows.of("request"), within=10, what="a line")
        (line,) = flows.of("request")
    assert {name: line[name] for name in FLOWS} == FLOWS
    fields = [tuple(each) for each in line["fields"]]
    assert ("x-shown", "yes") in fields
    assert [value for name, value in fields if name in dict(secrets)] == ["[redacted]"] * 3
    assert "s3cret" not in flows.process.output()
    assert "b0dy" not in flows.process.output()
    assert line["pod"] == "shop/orders-1"


def test_flows_as_text(shop):
    with (
        wiretap(shop.node, f"{scene.PLAIN_PORT}", "--output", "text", command="flows", pods=None) as flows,
    ):
        until(lambda: "Ctrl-C ends it" in flows.process.output(), within=10, what="flows to be active")
        assert shop.get("/seen", port=scene.PLAIN_PORT).served_by == "app"
        until(lambda: "200 by app, " in flows.process.output(), within=10, what=flows.process.output)
        [line] = [line for line in flows.process.output().splitlines() if "200 by app, " in line]
    _, request, answer, origin, pod = line.split("  ")
    assert request == f"GET {scene.HOST}:{scene.PLAIN_PORT}/seen"
    assert answer.removeprefix("answered late: ").startswith("200 by app, ")
    assert answer.endswith(", 4 B")
    assert origin.startswith(f"from {shop.space.client_ip}:")
    assert pod == "pod shop/orders-1"


def counters(shop):
    (found,) = (each["counters"] for each in shop.node.status()["intercepts"] if each["kind"] == "wiretap")
    return found


def told_lost(running):
    """The copies that the session was told are lost. It is told of them in portions, at most one a second."""
    return sum(event["count"] for event in running.of("lost"))


@pytest.mark.parametrize("kind", ["h1", "h2", "global"])
def test_a_dead_handler_is_asked_rarely_told_of_and_found_again(shop, kind):
    """Each copy would travel to the developer's machine, only to be refused there."""
    port = scene.PLAIN_PORT
    with Recorder() as recorder:
        dead = recorder.port
    options = () if kind == "global" else ("--http-path-prefix", "/", "--plaintext")
    with wiretap(shop.node, f"{dead}:{port}", *options) as running:
        if kind == "global":
            for _ in range(200):
                with talking(shop, port, "h1") as ask:
                    assert ask("/x") == "app"
        else:
            with talking(shop, port, kind) as ask:
                for _ in range(400):
                    assert ask("/x") == "app"
        until(lambda: counters(shop)["copies_dropped"] > 100, within=10, what=lambda: f"losses: {counters(shop)}")
        assert counters(shop)["refused"] < 40
        until(lambda: told_lost(running) > 100, within=10, what=lambda: f"losses told: {running.of('lost')}")
        assert running.of("lost")[0]["reason"] == "handler"
        with Recorder(port=dead) as recorder:

            def copied():
                with talking(shop, port, "h1" if kind == "global" else kind) as ask:
                    assert ask("/again") == "app"
                return len(recorder.copies) > 3  # the probe, and then every one

            until(copied, within=30, what="copies to come again", every=0.1)


def test_copies_of_a_busy_port_are_held_back_by_their_budget(shop):
    """Told in numbers, not in lines, and the handler gets those that the budget allows."""
    port = scene.PLAIN_PORT
    with (
        Recorder(record=False) as recorder,
        wiretap(shop.node, f"{recorder.port}:{port}", "--http-path-prefix", "/", "--plaintext") as running,
        shop.client(port=port, record=False) as client,
    ):
        request = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
        for _ in range(100):
            client.send(request * 50)
            for _ in range(50):
                assert client.reader.message(answers="GET").header("x-served-by") == "app"
        until(lambda: running.of("lost"), within=10, what="the session to be told")
        until(
            lambda: counters(shop)["copied"] + counters(shop)["copies_dropped"] >= 5000, within=20, what="all counted"
        )
        lines = running.of("request")
        assert len(lines) < 3000
        assert {event["reason"] for event in running.of("lost")} <= {"budget", "room"}
        assert len(recorder.copies) > 50
