"""Real sqlmap and five hundred ordinary requests, through the whole proxy."""

from __future__ import annotations

import subprocess

import pytest

from tests.harness import scene
from tests.harness.http2 import Http2Client
from tests.harness.inspection import policies
from tests.harness.vulnerable_app import SECRET, TABLE, VulnerableApp
from tests.harness.waf import counted, judged, waf_policy, waf_shop
from tests.harness.waiting import until
from tests.privileged.inspector.benign import requests

TAMPERS = ("space2comment", "between,randomcase", "charencode")


def sqlmap(shop, folder, *options):
    """What it finds out of the app."""
    command = [
        "sqlmap", "-u", f"http://{shop.space.ip}:{scene.PLAIN_PORT}/items?id=1", f"--host={scene.HOST}", "--batch",
        "--flush-session", "--disable-coloring", "--dbms=sqlite", "--technique=BU", "--threads=4", "--timeout=10",
        "--retries=0", "--random-agent", "--dump", "-T", TABLE, f"--output-dir={folder}", *options,
    ]  # fmt: skip
    inside = shop.space.client.enter(command)
    done = subprocess.run(inside, check=False, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
    dumped = "".join(path.read_text(errors="replace") for path in folder.rglob("*.csv"))
    return done.stdout + dumped


@pytest.fixture(scope="module")
def vulnerable(tmp_path_factory):
    """The scene with an app that can be dumped."""
    with scene.shop(tmp_path_factory.mktemp("shop")) as shop:
        address = (shop.space.ip, scene.PLAIN_PORT)
        with shop.space.pod.call(lambda: VulnerableApp(address=address)) as shop.app:
            yield shop


@pytest.mark.timeout(400)
def test_an_app_is_dumped_without_a_policy_and_not_with_one(vulnerable, tmp_path):
    shop = vulnerable
    assert SECRET in sqlmap(shop, tmp_path / "open")
    with policies(shop, waf_policy(ports=[scene.PLAIN_PORT])):
        until(
            lambda: shop.get("/items?id=1", port=scene.PLAIN_PORT).status == 200 and counted(shop, "waf_verdicts"),
            within=30, what=shop.conditions,
        )  # fmt: skip
        for number, tampers in enumerate((None, *TAMPERS)):
            options = () if tampers is None else (f"--tamper={tampers}",)
            assert SECRET not in sqlmap(shop, tmp_path / str(number), *options)
        assert counted(shop, "inspection_blocked") > 0


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with waf_shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


def over_http1(shop, corpus):
    """The status that each request gets."""
    with shop.client(alpn=("http/1.1",)) as client:
        for each in corpus:
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in each.fields)
            head = each.method + b" " + each.target + b" HTTP/1.1\r\n" + lines + b"\r\n"
            yield client.request(head + each.body, method=each.method.decode()).status


def over_http2(shop, corpus):
    """The same over HTTP/2."""
    with shop.client(alpn=("h2",)) as client:
        talk = Http2Client(client.sock)
        for each in corpus:
            fields = [(name.decode().lower(), value.decode("latin-1")) for name, value in each.fields]
            fields = [(name, value) for name, value in fields if name != "host"]
            stream = talk.begin(each.target.decode(), *fields, method=each.method.decode(), end=not each.body)
            if each.body:
                talk.send(stream, each.body, end=True)
            talk.until(lambda stream=stream: talk.answers[stream].ended)
            yield int(talk.answers[stream].headers[":status"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("send", [over_http1, over_http2])
def test_ordinary_requests_are_served(shop, send):
    corpus = requests()
    limits = {"verdictTimeout": "10s"}
    with judged(shop, waf_policy(waf={"limits": limits})):
        found = list(send(shop, corpus))
    blocked = [each.title for each, status in zip(corpus, found, strict=True) if status == 403]
    print(f"{len(blocked)} of {len(corpus)} are blocked: {blocked}")
    assert len(blocked) < len(corpus) / 100, blocked
    assert set(found) <= {200, 403, 405}
