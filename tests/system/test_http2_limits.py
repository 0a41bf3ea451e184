"""Bounds of HTTP/2 peers with real peers: handlers that take few requests, windows that are large, PINGs and cancels.

The app is nginx that takes 5,000 streams at once and gives windows of 16 MiB, or grpcio.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import subprocess
import time

import h2.config
import h2.connection
import h2.events
import pytest

from tests.harness import scene
from tests.harness.http2 import Http2Client
from tests.harness.nginx import nginx
from tests.harness.peers import Server, server_context
from tests.harness.processes import Process
from tests.harness.waiting import until

DEV = tuple(scene.DEV.split(": "))
APP = "http2_max_concurrent_streams 5000; http2_body_preread_size 16m; large_client_header_buffers 8 256k;"
FEW = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log info;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl http2; server_name _;
    ssl_certificate {folder}/tls/tls.crt; ssl_certificate_key {folder}/tls/tls.key;
    http2_max_concurrent_streams {at_once}; keepalive_requests {most};
    location / {{ default_type text/plain; return 200 "handler\\n"; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(folder))
        shop.nginx = stack.enter_context(
            nginx(
                shop.space.pod,
                folder / "nginx",
                listen=[f"{shop.space.ip}:{scene.TLS_PORT}"],
                certificate=shop.app_certificate,
                http2=True,
                extra=APP,
            )
        )
        yield shop


@contextlib.contextmanager
def handler_that_takes(shop, folder, *, at_once, most):
    """nginx as the handler; yields its port and a function that counts what it served."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shop.app_certificate.write(folder / "tls")
    (folder / "nginx.conf").write_text(FEW.format(folder=folder, port=port, at_once=at_once, most=most))
    command = ["nginx", "-e", folder / "error.log", "-c", folder / "nginx.conf", "-p", folder]
    with Process(command, log=folder / "nginx.log") as process:
        until(lambda: listens(port) or not process.running, within=10, what=lambda: f"nginx\n{process.text()}")
        yield port, lambda: (folder / "access.log").read_text().count(" 200 ")


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def app_requests(shop):
    return len(shop.nginx.requests())


def h2load(shop, *options):
    command = ["h2load", f"--connect-to={shop.space.ip}:{scene.TLS_PORT}", f"--header={scene.DEV}", *map(str, options)]
    done = subprocess.run(
        shop.space.client.enter([*command, f"https://{scene.HOST}:{scene.TLS_PORT}/"]),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    found = re.search(r"(\d+) 2xx, ", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1])


@pytest.mark.parametrize(
    ("method", "at_once", "most"), [("GET", 128, 10), ("POST", 128, 10), ("POST", 3, 100_000), ("POST", 8, 25)]
)
def test_a_handler_that_takes_few_gets_all(wide, tmp_path, method, at_once, most):
    (tmp_path / "body").write_bytes(b"x" * 5000)
    body = ["-d", tmp_path / "body"] if method == "POST" else []
    with (
        handler_that_takes(wide, tmp_path, at_once=at_once, most=most) as (port, served),
        wide.intercept(handler_port=port),
    ):
        before = app_requests(wide)
        assert h2load(wide, "-n", 300, "-c", 1, "-m", 100, *body) == 300
        until(lambda: served() == 300, within=5, what="the handler to have logged all")
        assert app_requests(wide) == before


def test_as_many_polls_at_once_as_the_app_allows(wide, tmp_path):
    with (
        handler_that_takes(wide, tmp_path, at_once=1000, most=100_000) as (port, _),
        wide.intercept(handler_port=port),
    ):
        before = app_requests(wide)
        assert h2load(wide, "-n", 2000, "-c", 1, "-m", 2000) == 2000
        assert app_requests(wide) == before


# --- a handler at a breakpoint ----------------------------------------------------------------------------------------

UPLOAD = 8 << 20


def at_breakpoint(server, connection):
    """An HTTP/2 server that says hello, pauses, and then reads."""
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
    peer.initiate_connection()
    connection.send(peer.data_to_send())
    assert server.release.wait(30)
    digest = hashlib.sha256()
    while data := connection.sock.recv(1 << 16):
        for event in peer.receive_data(data):
            match event:
                case h2.events.DataReceived():
                    digest.update(event.data)
                    peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    peer.send_headers(event.stream_id, [(":status", "200"), ("x-digest", digest.hexdigest())], True)
        connection.send(peer.data_to_send())


def test_an_upload_waits_for_a_handler_at_a_breakpoint_and_nobody_else_does(wide):
    tls = server_context(wide.app_certificate, alpn=("h2",))
    body = bytes(range(256)) * (UPLOAD // 256)
    with (
        Server(at_breakpoint, name="handler", tls=tls, record=False) as handler,
        wide.intercept(handler_port=handler.port),
        wide.client(alpn=("h2",)) as raw,
    ):
        client = Http2Client(raw.sock)
        client.until(lambda: client.h2.remote_settings.initial_window_size > UPLOAD)
        stream = client.begin("/upload", DEV, method="POST", end=False)
        client.send(stream, body, end=True)
        began = time.monotonic()
        while time.monotonic() < began + 4:
            assert client.request("/").served_by == "app"
        assert client.answers[stream].reset is None
        handler.release.set()
        client.until(lambda: client.answers[stream].ended or client.answers[stream].reset is not None)
        assert client.answers[stream].headers.get("x-digest") == hashlib.sha256(body).hexdigest()


def test_a_large_head_beside_diverted_streams(wide, tmp_path):
    with (
        handler_that_takes(wide, tmp_path, at_once=100, most=100_000) as (port, _),
        wide.intercept(handler_port=port),
        wide.client(alpn=("h2",)) as raw,
    ):
        client = Http2Client(raw.sock)
        assert client.request("/", DEV).headers[":status"] == "200"
        answer = client.request("/", ("x-large", "l" * 70_000))
        assert (answer.served_by, answer.headers[":status"]) == ("app", "200")
        assert client.request("/", DEV).headers[":status"] == "200"


def test_watches_answered_and_cancelled(wide):
    """More than there were resets in all, once; and none of them ends the connection."""
    tls = server_context(wide.app_certificate, alpn=("h2",))
    with (
        Server(watched, name="handler", tls=tls, record=False) as handler,
        wide.intercept(handler_port=handler.port),
        wide.client(alpn=("h2",)) as raw,
    ):
        client = Http2Client(raw.sock)
        for _ in range(110):
            streams = [client.begin("/watch", DEV) for _ in range(10)]
            client.until(lambda streams=streams: all(client.answers[stream].headers for stream in streams))
            for stream in streams:
                client.h2.reset_stream(stream, 8)
            client.flush()
        assert client.request("/").served_by == "app"


def watched(_server, connection):
    """An HTTP/2 server that begins every answer and ends none."""
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
    peer.initiate_connection()
    connection.send(peer.data_to_send())
    while data := connection.sock.recv(1 << 16):
        for event in peer.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                peer.send_headers(event.stream_id, [(":status", "200")])
        connection.send(peer.data_to_send())
