"""Keeping requests as HAR and sending them again, with the real daemon, command line and nginx.

What is written is read by haralyzer, which knows nothing of Sidestep.
"""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from haralyzer import HarParser

from sidestep.protocols import har
from tests.harness import scene
from tests.harness.nginx import nginx
from tests.harness.taps import Recorder, wiretap
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP, run
from tests.system.test_screens import alike, documented

TRAILERS = """
server {{ listen {ip}:9080; listen {ip}:9081 http2;
  location / {{ echo_read_request_body; echo_request_body; add_trailer X-Sum all; }} }}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """nginx as the app, over TLS with HTTP/2 and in clear text; ports 9080 and 9081 (HTTP/2) answer with trailers."""
    folder = tmp_path_factory.mktemp("replay")
    with scene.shop(folder) as shop:
        ip = shop.space.ip
        with nginx(
            shop.space.pod,
            folder / "nginx",
            listen=[f"{ip}:{scene.TLS_PORT}"],
            plain=[f"{ip}:{scene.PLAIN_PORT}"],
            certificate=shop.app_certificate,
            http2=True,
            extra=TRAILERS.format(ip=ip),
        ) as app:
            shop.app = app
            yield shop


def replay(netns, file, to, *options, code=0):
    """Run `sidestep replay --output json` in a namespace, or here; its lines."""
    words = [SIDESTEP, "replay", file, "--to", to, "--output", "json", *options]
    words = words if netns is None else netns.enter(words)
    done = run(words, within=120)
    assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ended(running):
    """End a session in order, so that its file is finished."""
    running.process.signal(signal.SIGINT)
    running.process.wait(60)


def told_whole(running):
    """How many requests were told with their answers, which come later where the machine is busy."""
    return sum(bool(each.get("answer")) for each in running.of("request")) + len(running.of("answered"))


def file_of(path, *entries):
    data = har.head("test") + b"".join(har.encode(each, first=not number) for number, each in enumerate(entries))
    path.write_bytes(data + har.TAIL)
    return path


def curl(shop, path, *options, port=scene.TLS_PORT):
    return shop.get(path, port=port, options=options)


def test_what_flows_keep_is_read_by_others_and_replayed(shop, tmp_path):
    kept = tmp_path / "orders.har"
    with wiretap(shop.node, "", "--save", kept, command="flows", pods=None) as flows:
        until(lambda: "Ctrl-C ends it" in flows.process.output(), within=10, what=flows.process.output)
        curl(shop, "/one?a=1&b", "--http2", "-H", "authorization: Bearer s3cret")
        curl(shop, "/two", "--http1.1", "-H", "cookie: id=s3cret")
        curl(shop, "/files/none", port=scene.PLAIN_PORT)
        until(lambda: told_whole(flows) == 3, within=15, what=lambda: f"three requests:\n{flows.events()}")
        ended(flows)
        assert "3 requests are in" in flows.process.output()
    text = kept.read_text()
    assert "s3cret" not in text
    parser = HarParser(json.loads(text))
    assert parser.creator["name"] == "Sidestep"
    pages = parser.pages
    entries = [each for page in pages for each in page.entries]
    entries.sort(key=lambda each: each.startTime)
    assert [each.request.url for each in entries] == [
        f"https://{scene.HOST}:{scene.TLS_PORT}/one?a=1&b",
        f"https://{scene.HOST}:{scene.TLS_PORT}/two",
        f"http://{scene.HOST}:{scene.PLAIN_PORT}/files/none",
    ]
    assert [each.request.httpVersion for each in entries] == ["HTTP/2", "HTTP/1.1", "HTTP/1.1"]
    assert [each.response.status for each in entries] == [200, 200, 404]
    assert entries[0].request.queryString == [{"name": "a", "value": "1"}, {"name": "b", "value": ""}]
    assert entries[0].response.headers[0]["name"]
    times = [each["time"] for each in json.loads(text)["log"]["entries"]]
    assert min(times) >= 0  # request and answer may come in one turn of the proxy
    assert any(times)

    before = len(shop.app.requests())
    lines = replay(
        shop.space.client, kept, f"http://{shop.space.ip}:{scene.PLAIN_PORT}", "--version-of-http", "1.1", "--compare"
    )
    assert [(each["status"], each["differences"]) for each in lines] == [(200, []), (200, []), (404, [])]
    assert [each["uri"] for each in shop.app.requests()[before:]] == ["/one?a=1&b", "/two", "/files/none"]
    lines = replay(
        shop.space.client, kept, f"https://{shop.space.ip}:{scene.TLS_PORT}", "--insecure", "--only", "1", "--compare"
    )
    assert [(each["number"], each["status"]) for each in lines] == [(1, 200)]
    lines = replay(shop.space.client, kept, f"http://{shop.space.ip}:{scene.PLAIN_PORT}", "--http-status", "4xx")
    assert [each["number"] for each in lines] == [3]


def test_the_screen_of_the_documents_is_that_of_a_real_run(shop, tmp_path):
    """What was kept is sent to the app again, which has lost a file since."""
    kept = tmp_path / "orders.har"
    carts = shop.app.root / "carts"
    carts.write_text("7")
    with wiretap(shop.node, "", "--save", kept, command="flows", pods=None) as flows:
        until(lambda: "Ctrl-C ends it" in flows.process.output(), within=10, what=flows.process.output)
        curl(shop, "/one", "--http1.1", "-H", "authorization: Bearer s3cret")
        curl(shop, "/two", "--http1.1")
        curl(shop, "/files/carts", "--http1.1")
        until(lambda: told_whole(flows) == 3, within=15, what=lambda: f"three requests:\n{flows.events()}")
        ended(flows)
    carts.unlink()
    words = [SIDESTEP, "replay", kept, "--to", f"http://{shop.space.ip}:{scene.PLAIN_PORT}", "--compare"]
    done = subprocess.run(shop.space.client.enter(words), capture_output=True, text=True, timeout=120, check=False)
    command = "sidestep replay orders.har --to http://127.0.0.1:8080 --compare"
    assert alike(done.stdout + done.stderr) == alike(documented("wiretap.md", command))


def test_where_answers_differ_is_shown(shop, tmp_path):
    kept = tmp_path / "orders.har"
    entry = har.Entry(
        request=har.Request("GET", "http://a/files/none"),
        response=har.Response(200, content=har.Content(3, "text/plain", "abc")),
    )
    file_of(kept, entry, har.Entry(request=har.Request("GET", "http://a/")))
    words = [SIDESTEP, "replay", kept, "--to", f"http://{shop.space.ip}:{scene.PLAIN_PORT}", "--compare"]
    done = subprocess.run(shop.space.client.enter(words), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "differs: status 200, now 404" in done.stdout
    assert "1 of 2 answers differ." in done.stdout
    done = subprocess.run(
        shop.space.client.enter([SIDESTEP, "replay", kept, "--to", f"http://{shop.space.ip}:1", "--compare"]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "failed: http://" in done.stdout
    assert "2 without an answer" in done.stdout


@pytest.mark.parametrize(("version", "port", "trailers"), [("HTTP/1.1", 9080, True), ("HTTP/2", 9081, False)])
def test_bodies_reach_nginx_and_its_trailers_come_back(shop, tmp_path, version, port, trailers):
    """Trailers of requests over HTTP/2 are a connection error to nginx."""
    body = "x" * 100_000
    request = har.Request(
        "POST",
        f"http://a.test:{port}/echo",
        version,
        headers=[har.Field("content-type", "text/plain"), har.Field("te", "trailers")],
        post_data=har.PostData("text/plain", body),
        trailers=[har.Field("X-Checked", "yes")] if trailers else [],
    )
    recorded = har.Response(200, content=har.Content(len(body), "text/plain", body))
    kept = file_of(tmp_path / "t.har", *[har.Entry(request=request, response=recorded)] * 2)
    lines = replay(shop.space.client, kept, f"http://{shop.space.ip}:{port}", "--compare")
    assert [(each["status"], each["size"], each["differences"]) for each in lines] == [(200, 100_000, [])] * 2
    assert [each["trailers"] for each in lines] == [[["x-sum", "all"]]] * 2


def test_trailers_are_on_the_wire(tmp_path):
    request = har.Request(
        "POST",
        "http://a.test/t",
        post_data=har.PostData("text/plain", "abc"),
        trailers=[har.Field("X-Checked", "yes")],
    )
    h2 = har.Request("POST", "http://a.test/t", "h2", post_data=request.post_data, trailers=request.trailers)
    with Recorder() as recorder:
        kept = file_of(tmp_path / "t.har", har.Entry(request=request), har.Entry(request=h2))
        lines = replay(None, kept, f"http://127.0.0.1:{recorder.port}")
        http1, http2 = recorder.wait(2)
    assert [each["status"] for each in lines] == [200, 200]
    assert (http1.body, http2.body) == (b"abc", b"abc")
    assert http2.trailers == [("x-checked", "yes")]
    assert b"\r\n0\r\nx-checked: yes\r\n\r\n" in recorder.connections[0].received


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_wiretap_keeps_bodies_and_no_secrets(shop, tmp_path, version):
    kept = tmp_path / "copies.har"
    options = ("--http-path-prefix", "/", "--plaintext", "--save", kept)
    with Recorder() as recorder, wiretap(shop.node, f"{recorder.port}:{scene.TLS_PORT}", *options) as running:
        curl(shop, "/echo", version, "-H", "authorization: s3cret", "--data-binary", "b0dy")
        recorder.wait(1)
        until(lambda: running.of("answered"), within=15, what=lambda: f"an answer:\n{running.events()}")
        ended(running)
    assert "s3cret" not in kept.read_text()
    [entry] = [each for page in HarParser(json.loads(kept.read_text())).pages for each in page.entries]
    assert entry.request.httpVersion == ("HTTP/1.1" if version == "--http1.1" else "HTTP/2")
    assert entry.request.text == "b0dy"
    assert entry.response.status == 200
    lines = replay(
        shop.space.client,
        kept,
        f"https://{shop.space.ip}:{scene.TLS_PORT}",
        "--insecure",
        "--compare",
        "--set-header",
        "authorization=again",
    )
    assert [(each["status"], each["size"], each["differences"]) for each in lines] == [(200, 4, [])]
