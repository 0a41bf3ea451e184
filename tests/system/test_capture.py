"""`sidestep capture` through a real daemon: what real clients and apps exchange over TLS, as tshark reads it."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess

import pytest

from tests.harness import scene, tshark
from tests.harness.cli import sidestep
from tests.harness.http2 import any_app
from tests.harness.inspection import policies, policy, rule
from tests.harness.peers import Client, Server, server_context
from tests.harness.processes import Process, child
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP
from tests.harness.websocket_peers import websocket_client, websocket_server
from tests.system.test_grpc import call, grpc_server

SECRET = "S3CRETtoken"
H1 = ("-d", f"tcp.port=={scene.TLS_PORT},http")
H2 = ("-d", f"tcp.port=={scene.TLS_PORT},http2")
_numbers = itertools.count(1)


class Capture:
    """A running `sidestep capture` into a file."""

    def __init__(self, process, path):
        self.process = process
        self.path = path

    def stop(self):
        """Ctrl-C; the file."""
        self.process.signal(signal.SIGINT)
        assert self.process.wait(20) == 0, self.process.text()
        return self.path.read_bytes()


@contextlib.contextmanager
def capturing(shop, *options, port=scene.TLS_PORT, active=True):
    path = shop.folder / f"capture-{next(_numbers)}.pcapng"
    line = [SIDESTEP, "capture", "orders", "-n", "shop", "--socket", shop.node.socket, "-w", path]
    line += ["--port", str(port), *options] if port else options
    with Process(line, log=path.with_suffix(".log")) as process:
        told = lambda: "Capturing" in process.text() or not process.running  # noqa: E731
        until(told, within=15, what=lambda: f"the capture to begin: {process.text()}")
        assert process.running or not active, process.text()
        yield Capture(process, path)


def captured(capture, *options, until_rows, only, field):
    """The file, once tshark sees so many rows in it, after Ctrl-C."""

    def look():
        there = tshark.so_far(capture.path.read_bytes())
        return len(tshark.rows(there, [field], only=only, options=options)) >= until_rows

    until(look, within=20, what=lambda: f"{until_rows} of {only}: {capture.process.text()}")
    return capture.stop()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An app that speaks HTTP/1 and HTTP/2 over TLS."""
    with scene.shop(tmp_path_factory.mktemp("capture")) as shop:
        tls = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
        with Server(any_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls, record=False):
            yield shop


def visit(shop, version):
    """Requests with secrets in heads and bodies."""
    headers = (f"Authorization: Bearer {SECRET}", f"Cookie: a={SECRET}", f"Referer: https://x.test/?t={SECRET}")
    answer = shop.get(f"/echo?token={SECRET}", *headers, options=[version])
    assert answer.status == 200
    options = [version, "--data", f"body {SECRET} " * 400]
    assert shop.get("/digest", *headers, options=options).status == 200
    assert shop.get("/bytes/70000", options=[version]).status == 200


@pytest.mark.parametrize("snap", ["heads", "all"])
def test_http1(wide, snap):
    with capturing(wide, "--snap", snap) as capture:
        visit(wide, "--http1.1")
        file = captured(capture, *H1, until_rows=3, only="http.response.code==200", field="http.response.code")
    assert tshark.complaints(file, *H1) == []
    rows = tshark.rows(file, ["http.request.method", "http.request.uri"], only="http.request", options=H1)
    token = SECRET if snap == "all" else "[redacted]"
    assert [(row["http.request.method"], row["http.request.uri"]) for row in rows] == [
        ("GET", f"/echo?token={token}"), ("POST", "/digest"), ("GET", "/bytes/70000"),
    ]  # fmt: skip
    assert (SECRET.encode() in file) is (snap == "all")
    whole = b"sidestep-original-" not in file.lower()
    assert whole is (snap == "all")
    assert (len(file) > 70000) is (snap == "all")
    fin = tshark.rows(file, ["tcp.stream"], only="tcp.flags.fin==1", options=H1)
    assert {row["tcp.stream"] for row in fin} == {"0", "1", "2"}
    comments = tshark.rows(file, ["frame.comment"], only="frame.comment", options=H1)
    assert all("decrypted TLSv1.3" in row["frame.comment"] for row in comments)
    assert len(comments) == 3


@pytest.mark.parametrize(
    "options", [("--snap", "heads"), ("--snap", "all"), ("--snap", "all", "--http-method", "POST")]
)
def test_http2(wide, options):
    whole = options == ("--snap", "all")
    filtered = "--http-method" in options
    with capturing(wide, *options) as capture:
        visit(wide, "--http2")
        count = 1 if filtered else 3
        file = captured(capture, *H2, until_rows=count, only="http2.headers.status", field="http2.headers.status")
    assert tshark.complaints(file, *H2) == []
    rows = tshark.rows(file, ["http2.headers.path"], only="http2.headers.path", options=H2)
    token = SECRET if whole else "[redacted]"
    expected = ["/digest"] if filtered else [f"/echo?token={token}", "/digest", "/bytes/70000"]
    # Bytes of connections that are captured whole have the time at which they were copied, a moment after they came.
    assert sorted(row["http2.headers.path"] for row in rows) == sorted(expected)
    assert (SECRET.encode() in file) is ("all" in options)


def test_h2load_and_nghttp(wide):
    base = f"https://{wide.space.ip}:{scene.TLS_PORT}"
    with capturing(wide, "--snap", "all") as capture:
        for command in (
            ["nghttp", "-n", f"{base}/", f"{base}/echo"],
            ["h2load", "-n", "20", "-c", "2", "-m", "5", f"{base}/bytes/300"],
        ):
            subprocess.run(wide.space.client.enter(command), check=True, capture_output=True, timeout=60)
        file = captured(capture, *H2, until_rows=3, only="tcp.flags.fin==1 || tcp.flags.reset==1", field="tcp.stream")
    assert tshark.complaints(file, *H2) == []
    rows = tshark.rows(file, ["http2.headers.status"], only="http2.headers.status", options=H2)
    assert [code for row in rows for code in row["http2.headers.status"].split(",")] == ["200"] * 22


@pytest.mark.parametrize("snap", ["heads", "all"])
def test_grpc(tmp_path_factory, snap):
    folder = tmp_path_factory.mktemp("grpc")
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(folder))
        shop.app_certificate.write(folder / "tls")
        address = f"{shop.space.ip}:{scene.TLS_PORT}"
        stack.enter_context(grpc_server(folder, "app", address, netns=shop.space.pod, tls=folder / "tls"))
        capture = stack.enter_context(capturing(shop, "--snap", snap))
        calls = [
            {"method": "Get", "messages": ["first order"]},
            {"method": "Chat", "messages": ["a" * 40000, "b"]},
            {"method": "Fail"},
        ]
        call(shop, scene.TLS_PORT, *calls)
        file = captured(capture, *H2, until_rows=1, only="tcp.flags.fin==1 || tcp.flags.reset==1", field="tcp.stream")
    options = (*H2, "--disable-protocol", "protobuf", "--disable-protocol", "json")
    assert {row["_ws.expert.message"] for row in tshark.complaints(file, *options)} <= {"Trailing stray characters"}
    rows = tshark.rows(file, ["http2.headers.path"], only="http2.headers.path", options=options)
    assert [row["http2.headers.path"].rpartition("/")[2] for row in rows] == ["Get", "Chat", "Fail"]
    messages = tshark.rows(file, ["grpc.message_length"], only="grpc.message_length", options=options)
    assert ("40000" in {row["grpc.message_length"] for row in messages}) is (snap == "all")
    names = tshark.rows(file, ["http2.header.name"], only="http2.header.name", options=options)
    assert sum(row["http2.header.name"].split(",").count("grpc-status") for row in names) == 3


@pytest.mark.parametrize(
    "options", [("--snap", "all"), ("--snap", "all", "--http-path-prefix", "/ws"), ("--snap", "heads")]
)
def test_websocket(tmp_path_factory, options):
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(tmp_path_factory.mktemp("websocket")))
        tls = server_context(shop.app_certificate, alpn=("http/1.1",))
        stack.enter_context(
            websocket_server("app", netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls)
        )
        capture = stack.enter_context(capturing(shop, *options))
        with websocket_client(shop, scene.TLS_PORT) as client:
            assert client.recv() == "app"
            client.send("hello there")
            assert client.recv() == "hello there"
        file = captured(capture, *H1, until_rows=1, only="tcp.flags.fin==1 || tcp.flags.reset==1", field="tcp.stream")
    assert tshark.complaints(file, *H1) == []
    assert len(tshark.rows(file, ["http.response.code"], only="http.response.code==101", options=H1)) == 1
    texts = tshark.rows(file, ["text"], only="websocket.payload.text || data-text-lines", options=H1)
    if options == ("--snap", "heads"):
        assert texts == []
        assert b"hello there" not in file
    else:
        assert len(texts) == 3, texts


def test_a_wire_is_captured_as_it_passes(wide):
    def greet(server, connection):
        connection.send(b"220 ready\r\n")
        connection.reader.until(b"\r\n")
        connection.send(b"221 bye\r\n")

    port = scene.PLAIN_PORT
    with (
        Server(greet, netns=wide.space.pod, address=wide.space.ip, port=port, record=False),
        capturing(wide, "--snap", "all", port=port) as capture,
    ):
        with Client(wide.space.ip, port, netns=wide.space.client) as client:
            assert client.sock.recv(100) == b"220 ready\r\n"
            client.send(b"QUIT\r\n")
            assert client.sock.recv(100) == b"221 bye\r\n"
        only = "tcp.flags.fin==1 || tcp.flags.reset==1"
        file = captured(capture, until_rows=1, only=only, field="tcp.stream")
    assert tshark.complaints(file) == []
    said = tshark.rows(file, ["tcp.payload"], only="tcp.len > 0")
    assert [bytes.fromhex(row["tcp.payload"]) for row in said] == [b"220 ready\r\n", b"QUIT\r\n", b"221 bye\r\n"]


@pytest.mark.parametrize("snap", ["heads", "all"])
def test_hits_of_rules_are_comments_of_packets(wide, snap):
    watched = policy(rule("/watched", name="watched", action="Alert"))
    with policies(wide, watched, alone=False), capturing(wide, "--snap", snap) as capture:
        for path in ("/plain", "/watched"):
            assert wide.get(path, options=["--http1.1"]).status == 200
        file = captured(capture, *H1, until_rows=2, only="http.response.code==200", field="http.response.code")
    found = tshark.rows(file, ["tcp.stream", "frame.comment"], only='frame.comment contains "rule"', options=H1)
    asked = tshark.rows(file, ["tcp.stream"], only='http.request==1 && http.request.uri=="/watched"', options=H1)
    assert [row["tcp.stream"] for row in found] == [row["tcp.stream"] for row in asked]
    assert "policy shop/orders, rule watched: alert, id " in found[0]["frame.comment"]


def test_it_ends_by_time_and_by_size_and_pipes_into_tshark(wide):
    words = ("capture", "orders", "-n", "shop", "--port", str(scene.TLS_PORT), "--snap", "all")
    timed = sidestep(*words, "-w", wide.folder / "timed.pcapng", "--for", "500ms", socket=wide.node.socket)
    assert timed.code == 0, timed.stderr
    assert "0 packets of 0 connections" in timed.stderr
    assert tshark.rows((wide.folder / "timed.pcapng").read_bytes(), ["frame.number"]) == []
    with capturing(wide, "--snap", "all", "--max-size", "1") as capture:
        for _ in range(3):
            wide.get("/bytes/700000", options=["--http1.1"])
        assert capture.process.wait(20) == 0
        assert "1048576 bytes" in capture.process.text()
    assert 900_000 < capture.path.stat().st_size <= 1_100_000
    assert capture.path.stat().st_mode & 0o777 == 0o600
    line = [SIDESTEP, *words, "--socket", str(wide.node.socket), "-w", "-", "--for", "4s"]
    with child(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as piped:
        reader = subprocess.Popen(
            ["tshark", "-r", "-", "-n", *H1, "-Y", "http.request"],
            stdin=piped.stdout,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert b"Capturing" in piped.stderr.readline()
        wide.get("/piped", options=["--http1.1"])
        shown, _ = reader.communicate(timeout=60)
        piped.wait(20)
    assert "GET /piped" in shown


def test_it_costs_nothing_once_it_is_over(wide):
    with capturing(wide):
        wide.get("/", options=["--http1.1"])
        views = wide.node.status()["intercepts"]
        assert [each["kind"] for each in views] == ["capture"]
    until(lambda: not wide.node.status()["pods"], within=40, what=wide.conditions)
    log = wide.node.log()
    assert "a capture of decrypted traffic begins" in log
    assert "a capture of decrypted traffic has ended" in log
