"""HTTP/2 with real peers: every transport, matched and not, by turns on one connection; load; volume; fallback."""

from __future__ import annotations

import contextlib
import re
import subprocess

import pytest

from tests.harness import scene
from tests.harness.http2 import Http2Client, any_app
from tests.harness.nginx import nginx, write_big_file
from tests.harness.peers import Server, digest_of, server_context
from tests.harness.processes import child, peak, reset_peak
from tests.harness.waiting import until

OPTIONS = {
    ("h1", "tls1.2"): ["--http1.1", "--tls-max", "1.2"],
    ("h1", "tls1.3"): ["--http1.1", "--tlsv1.3"],
    ("h1", "plain"): ["--http1.1"],
    ("h2", "tls1.2"): ["--http2", "--tls-max", "1.2"],
    ("h2", "tls1.3"): ["--http2", "--tlsv1.3"],
    ("h2", "plain"): ["--http2-prior-knowledge"],
}
TABLE = [pytest.param(version, transport, id=f"{version}-{transport}") for version, transport in OPTIONS]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """nginx that speaks both versions over TLS, an application of ours that speaks both in clear; two handlers."""
    folder = tmp_path_factory.mktemp("wide")
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(folder))
        address = shop.space.ip
        shop.nginx = stack.enter_context(
            nginx(
                shop.space.pod,
                folder / "nginx",
                listen=[f"{address}:{scene.TLS_PORT}"],
                certificate=shop.app_certificate,
                http2=True,
            )
        )
        shop.app = stack.enter_context(
            Server(any_app, netns=shop.space.pod, address=address, port=scene.PLAIN_PORT, record=False)
        )
        tls = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
        shop.h2_handler = stack.enter_context(Server(any_app, name="handler", tls=tls, record=False))
        shop.h2c_handler = stack.enter_context(Server(any_app, name="handler", record=False))
        yield shop


@contextlib.contextmanager
def intercepting(shop, transport, *, speaks="h2"):
    """The usual intercept of the port of a transport, to a handler that speaks HTTP/2 or only HTTP/1.1."""
    plain = transport == "plain"
    if speaks == "h2":
        handler = shop.h2c_handler if plain else shop.h2_handler
    else:
        handler = shop.plain_handler if plain else shop.handler
    port = scene.PLAIN_PORT if plain else scene.TLS_PORT
    with shop.intercept(port=port, handler_port=handler.port, plaintext=plain) as running:
        yield running


def curl_many(shop, transport, version, *requests):
    """Requests on one curl connection; each is (path, header or ""). Returns [(served by, version)], connections."""
    plain = transport == "plain"
    port = scene.PLAIN_PORT if plain else scene.TLS_PORT
    url = f"{'http' if plain else 'https'}://{scene.HOST}:{port}"
    command = []
    for path, header in requests:
        command += ["--next"] if command else []
        command += ["-sS", "--max-time", "20", *OPTIONS[version, transport], "--cacert", shop.ca]
        command += ["--resolve", f"{scene.HOST}:{port}:{shop.space.ip}", "-o", "/dev/null"]
        command += ["-w", "%header{x-served-by} %{http_version} %{num_connects} %{http_code}\n"]
        command += (["-H", header] if header else []) + [url + path]
    done = subprocess.run(
        shop.space.client.enter(["curl", *map(str, command)]), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(row[0], row[1]) for row in rows], sum(int(row[2]) for row in rows)


SPOKEN = {"h1": "1.1", "h2": "2"}


@pytest.mark.parametrize("speaks", ["h2", "http/1.1"])
@pytest.mark.parametrize(("version", "transport"), TABLE)
def test_by_turns_on_one_connection(wide, version, transport, speaks):
    turns = [("/", scene.DEV), ("/", ""), ("/", ""), ("/", scene.DEV), ("/", scene.DEV), ("/", "")]
    with intercepting(wide, transport, speaks=speaks):
        if (version, transport) == ("h2", "plain"):  # Debian's curl does not use such a connection twice
            with wide.client(port=scene.PLAIN_PORT) as client:
                ours = Http2Client(client.sock)
                fields = [[tuple(header.split(": "))] if header else [] for _, header in turns]
                seen, connections = [(ours.request("/", *each).served_by, "2") for each in fields], 1
        else:
            seen, connections = curl_many(wide, transport, version, *turns)
    assert seen == [("handler" if header else "app", SPOKEN[version]) for _, header in turns]
    assert connections == 1


@pytest.mark.parametrize("transport", ["plain", "tls1.3"])
@pytest.mark.parametrize("header", ["", scene.DEV], ids=["app", "handler"])
def test_a_body_there_and_back(wide, tmp_path, transport, header):
    port = scene.PLAIN_PORT if transport == "plain" else scene.TLS_PORT
    body = "x" * 300_000
    (tmp_path / "body").write_text(body)
    with intercepting(wide, transport):
        answer = wide.get(
            "/echo",
            *([header] if header else []),
            port=port,
            options=[*OPTIONS["h2", transport], "--data-binary", f"@{tmp_path}/body"],
        )
    assert (answer.text, answer.info["http_version"]) == (body, "2"), answer.errors


def test_an_upgrade_to_h2c(wide):
    """`curl --http2` in clear asks for it; later requests are diverted in the HTTP/2 that follows."""
    with intercepting(wide, "plain"):
        answer = wide.get("/", port=scene.PLAIN_PORT, options=["--http2"])
        assert (answer.served_by, answer.info["http_version"]) == ("app", "2"), answer.errors
        with wide.client(port=scene.PLAIN_PORT) as raw:
            client = Http2Client(raw.sock, upgrade=True)
            assert client.answers[1].served_by == "app"
            turns = ["handler", "app", "handler"]
            dev = tuple(scene.DEV.split(": "))
            assert [client.request("/", *([dev] if side == "handler" else [])).served_by for side in turns] == turns
    assert wide.get("/", port=scene.PLAIN_PORT, options=["--http2"]).served_by == "app"


def test_an_upgrade_to_h2c_is_not_a_handlers_to_grant(wide):
    """All later streams of the connection would be the handler's. The request that offers it stays diverted."""
    offer = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAA"]
    with intercepting(wide, "plain"):
        answer = wide.get("/", scene.DEV, port=scene.PLAIN_PORT, options=["--http2"])
        assert (answer.served_by, answer.info["http_version"]) == ("handler", "1.1"), answer.errors
        with wide.client(port=scene.PLAIN_PORT) as client:
            for header, side in ((scene.DEV, "handler"), ("x-other: 1", "app"), (scene.DEV, "handler")):
                got = client.get("/", header, *(offer if side == "handler" else []))
                assert (got.status, got.header("x-served-by")) == (200, side)
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + "\r\n".join([*offer, "", ""]).encode())
            assert client.reader.message(answers="GET").status == 101


# --- load -------------------------------------------------------------------------------------------------------------


def h2load(shop, transport, requests, *headers, streams=100, connections=1):
    plain = transport == "plain"
    port = scene.PLAIN_PORT if plain else scene.TLS_PORT
    url = f"{'http' if plain else 'https'}://{scene.HOST}:{port}/"
    command = [
        "h2load",
        f"--connect-to={shop.space.ip}:{port}",
        "-n",
        str(requests),
        "-c",
        str(connections),
        "-m",
        str(streams),
    ]
    command += [f"--header={header}" for header in headers]
    done = subprocess.run(
        shop.space.client.enter([*command, url]), capture_output=True, text=True, timeout=100, check=False
    )
    counts = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", done.stdout)
    assert counts, done.stdout + done.stderr
    assert (int(counts[1]), int(counts[2])) == (requests, requests), done.stdout


def test_ten_thousand_requests_none_lost(wide):
    with intercepting(wide, "tls1.3") as running:
        h2load(wide, "tls1.3", 10_000)
        assert not running.of("request")


@pytest.mark.parametrize(("speaks", "requests"), [("h2", 3000), ("http/1.1", 1000)])
def test_diverted_requests_none_lost(wide, speaks, requests):
    with intercepting(wide, "tls1.3", speaks=speaks):
        h2load(wide, "tls1.3", requests, scene.DEV, connections=2)


def test_nghttp_with_priorities_and_padding(wide):
    for side, header in (("app", None), ("handler", scene.DEV)):
        with intercepting(wide, "tls1.3"):
            command = ["nghttp", "-v", "-n", "--no-verify-peer", "--padding=64", "-m", "5", "-p", "220"]
            command += ["-H", header] if header else []
            command += [f"https://{wide.space.ip}:{scene.TLS_PORT}/"]
            done = subprocess.run(
                wide.space.client.enter(command), capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.count(f"x-served-by: {side}") == 5, done.stdout


# --- volume -----------------------------------------------------------------------------------------------------------

SIZE = 128 << 20
GROWTH = 20 << 20


@pytest.mark.cold
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("header", "speaks"), [("", "h2"), (scene.DEV, "h2"), (scene.DEV, "http/1.1")], ids=["app", "handler", "translated"]
)
def test_large_bodies_in_bounded_memory(wide, tmp_path, header, speaks):
    path = wide.nginx.root / "big"
    digest = write_big_file(path, SIZE)
    words = [header] if header else []
    wide.handler.record = False
    with intercepting(wide, "tls1.3", speaks=speaks) as running:
        assert wide.get("/", *words, options=["--http2"]).served_by == ("handler" if header else "app")
        watched = {"proxy": wide.proxy(), "daemon": wide.node.pid, "cli": running.pid}
        before = {name: reset_peak(pid) for name, pid in watched.items()}
        upload = "/digest" if header else "/upload/big"
        answer = wide.get(upload, *words, options=["--http2", "-T", path], within=90)
        if header:
            assert answer.text == f"{digest} {SIZE}\n", answer.errors
        else:
            assert (answer.status, sha256(wide.nginx.root / "upload/big")) == (201, digest), answer.errors
        download = f"/bytes/{SIZE}" if header else "/files/big"
        answer = wide.get(download, *words, options=["--http2", "-o", tmp_path / "got"], within=90)
        assert sha256(tmp_path / "got") == (digest_of(SIZE) if header else digest), answer.errors
        growth = {name: peak(pid) - before[name] for name, pid in watched.items()}
        assert max(growth.values()) < GROWTH, growth
    (tmp_path / "got").unlink()
    path.unlink()


def sha256(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


# --- endings ----------------------------------------------------------------------------------------------------------


def test_a_handler_that_refuses_leaves_the_request_to_the_app(wide):
    with Server(any_app, name="gone") as gone:
        pass
    for version in ("h1", "h2"):
        with wide.intercept(handler_port=gone.port):
            seen, connections = curl_many(wide, "tls1.3", version, ("/", scene.DEV), ("/", ""), ("/", scene.DEV))
        assert seen == [("app", SPOKEN[version])] * 3
        assert connections == 1


def test_the_end_of_an_intercept_gives_running_streams_to_the_app(wide):
    with wide.intercept(handler_port=wide.h2_handler.port) as running:
        port = scene.TLS_PORT
        command = ["curl", "-sS", "--http2", "--max-time", "20", "--cacert", wide.ca, "-H", scene.DEV]
        command += ["--resolve", f"{scene.HOST}:{port}:{wide.space.ip}", f"https://{scene.HOST}:{port}/hold"]
        with child(wide.space.client.enter(command), stdout=subprocess.PIPE) as client:
            assert wide.h2_handler.holding.acquire(timeout=10)
            running.stop()
            output, _ = client.communicate(timeout=20)
        assert output == b"app\n"
    until(lambda: wide.get("/", options=["--http2"]).served_by == "app", within=5, what="the app to answer")
