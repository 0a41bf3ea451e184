"""Requests from before a session, as pod proxies keep them, with the real daemon and real peers."""

from __future__ import annotations

import contextlib

import pytest

from tests.harness import scene
from tests.harness.cli import sidestep
from tests.harness.http2 import any_app
from tests.harness.peers import Server, server_context
from tests.harness.taps import Recorder, wiretap
from tests.harness.waiting import until
from tests.system.test_answers import active, answer_of, flowing, lines
from tests.system.test_wiretap import VERSIONS, intercepting, talking

KEPT, UNKEPT = scene.PLAIN_PORT, scene.TLS_PORT


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """An app on two ports. Its pod asks for the requests of one of them to be kept."""
    annotations = {f"sidestep.dev/recent-requests.{KEPT}": "enabled"}
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(tmp_path_factory.mktemp("earlier"), annotations=annotations))
        both = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
        space = shop.space
        for port, tls in ((UNKEPT, both), (KEPT, None)):
            app = Server(any_app, netns=space.pod, address=space.ip, port=port, tls=tls, record=False)
            stack.enter_context(app)
        shop.handlers = {
            port: stack.enter_context(Server(any_app, name="handler", tls=tls, record=False))
            for port, tls in ((UNKEPT, both), (KEPT, None))
        }
        yield shop


def paths(running):
    return [each["path"] for each in running.of("request")]


def told(running, count=1):
    until(lambda: len(running.of("earlier")) >= count, within=20, what=running.events)
    return running.of("earlier")


@pytest.mark.parametrize("version", VERSIONS)
def test_flows_begin_with_earlier_requests_and_their_answers(shop, version):
    """Steered for an intercept, whose requests and all others are kept; gone with the steering."""
    with intercepting(shop, KEPT):
        with talking(shop, KEPT, version) as ask:
            for number in range(5):
                assert ask(f"/echo?n={number}", ("authorization", "Bearer S3CRET"), body=b"abc") == "app"
        with flowing(shop, "--last", "2", port=str(KEPT)) as flows:
            active(flows)
            [earlier] = told(flows)
            assert (earlier["port"], earlier["count"], earlier["kept"]) == (KEPT, 2, True)
            with talking(shop, KEPT, version) as ask:
                assert ask("/now") == "app"
            shown = lines(flows, 3)
            assert [each["path"] for each in shown] == ["/echo?n=3", "/echo?n=4", "/now"]
            assert [each["earlier"] for each in shown] == [True, True, False]
            assert [answer_of(flows, each)["status"] for each in shown] == [200, 200, 200]
            assert ["authorization", "[redacted]"] in shown[0]["fields"]
            assert (shown[0]["answer"]["received"], shown[0]["protocol"]) == (
                3,
                "h2" if version == "h2" else "http/1.1",
            )
            assert shown[0]["time"] <= shown[1]["time"] <= shown[2]["time"]
            assert "S3CRET" not in flows.process.output()
        with flowing(shop, "--since", "1h", "--http-path-equal", "/now", port=str(KEPT)) as flows:
            told(flows)
            assert paths(flows) == ["/now"]
    until(lambda: not any(pod["steered"] for pod in shop.node.status()["pods"]), within=20, what="nothing steered")
    with flowing(shop, "--last", "1000", port=str(KEPT)) as flows:
        assert [(each["count"], each["kept"]) for each in told(flows)] == [(0, True)]


def test_only_some_statuses_of_earlier_requests(shop):
    with intercepting(shop, KEPT):
        for path in ("/drop", "/fine", "/half"):
            with shop.client(port=KEPT) as client:
                client.send(f"GET {path} HTTP/1.1\r\nHost: {scene.HOST}\r\nConnection: close\r\n\r\n".encode())
                client.reader.rest()
        with flowing(shop, "--last", "9", "--http-status", "none", port=str(KEPT)) as flows:
            assert told(flows)[0]["count"] == 1
            assert paths(flows) == ["/drop"]


def test_who_intercepts_or_copies_is_shown_earlier_requests_too(shop):
    mine = ("--http-header", "x-dev=me")
    with intercepting(shop, KEPT, "--http-header", "x-dev=somebody"):
        assert shop.get("/mine", "x-dev: me", port=KEPT).served_by == "app"
        assert shop.get("/other", port=KEPT).served_by == "app"
        with shop.intercept(*mine, "--last", "9", port=KEPT, handler_port=shop.handlers[KEPT].port) as intercept:
            assert paths(intercept) == ["/mine"]
            assert intercept.of("request")[0]["earlier"]
            assert shop.get("/mine/2", "x-dev: me", port=KEPT).served_by == "handler"
            assert [(each["path"], each["earlier"]) for each in lines(intercept, 2)][1] == ("/mine/2", False)
        with Recorder() as recorder, wiretap(shop.node, f"{recorder.port}:{KEPT}", *mine, "--last", "1") as running:
            assert told(running)[0]["count"] == 1
            assert shop.get("/copied", "x-dev: me", port=KEPT).served_by == "app"
            recorder.wait(1)
            assert [(each["path"], each["earlier"]) for each in lines(running, 2)] == [
                ("/mine/2", True),
                ("/copied", False),
            ]
        assert recorder.paths == ["/copied"]


def test_without_asking_requests_are_kept_while_somebody_is_shown_all_of_them(shop):
    with intercepting(shop, UNKEPT):
        assert shop.get("/nobody", port=UNKEPT).served_by == "app"
        with flowing(shop, "--last", "9", "--output", "text", port=str(UNKEPT)) as flows:
            hint = f"sidestep.dev/recent-requests.{UNKEPT}: enabled would keep them"
            until(lambda: hint in flows.process.output(), within=20, what=flows.process.output)
            assert shop.get("/shown", port=UNKEPT).served_by == "app"
            until(lambda: "/shown" in flows.process.output(), within=20, what=flows.process.output)
        with flowing(shop, "--last", "9", port=str(UNKEPT)) as flows:
            assert [(each["count"], each["kept"]) for each in told(flows)] == [(1, False)]
            assert paths(flows) == ["/shown"]


def test_what_is_not_read_is_not_kept(shop):
    result = sidestep(
        "wiretap", "orders", "-n", "shop", "--port", f"9:{KEPT}", "--last", "9", "--socket", str(shop.node.socket)
    )
    assert result.code == 2
    assert "--since and --last need a filter" in result.stderr
