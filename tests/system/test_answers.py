"""How requests were answered, as `flows`, `intercept` and `wiretap` tell it, with the real daemon and real peers."""

from __future__ import annotations

import pytest

from tests.harness import scene
from tests.harness.taps import wiretap
from tests.harness.waiting import until
from tests.system.test_wiretap import (
    DEV,
    PORTS,
    TAP,
    VERSIONS,
    intercepting,
    shop,  # noqa: F401 - a fixture
    talking,
    tapping,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")


def flowing(shop, *options, port=""):  # noqa: F811 - the fixture
    return wiretap(shop.node, port, *options, command="flows", pods=None)


def active(running):
    until(lambda: "Ctrl-C ends it" in running.process.output(), within=10, what=running.process.output)


def lines(running, count):
    until(lambda: len(running.of("request")) >= count, within=15, what=lambda: f"{count} lines:\n{running.events()}")
    return running.of("request")


def assert_tls(facts, port, version):
    """What is told of the client's TLS is what the client has asked for, and got."""
    if port != scene.TLS_PORT:
        assert facts is None
        return
    assert facts.pop("cipher").startswith("TLS_")
    assert len(facts.pop("ja3")) == 32
    assert facts.pop("ja4").startswith("t13d"), "a client that speaks TLS 1.3 and names its server"
    alpn = {"alpn": "h2"} if version == "h2" else {"alpn": "http/1.1"} if "alpn" in facts else {}
    assert facts == {"version": "TLSv1.3", "server_name": scene.HOST, **alpn}


def answers_of(running):
    until(lambda: running.of("answered"), within=15, what=lambda: f"an answer:\n{running.events()}")
    return running.of("answered")


def answer_of(running, line):
    """The answer to a request: on its line, or on one of its own where a busy machine took longer than flows wait."""

    def late():
        return [each["answer"] for each in running.of("answered") if each["number"] == line["number"]]

    return line.get("answer") or until(late, within=15, what=lambda: f"an answer:\n{running.events()}")[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("port", PORTS)
def test_flows_show_answers_of_the_app_and_of_a_handler(shop, port, version):  # noqa: F811
    with flowing(shop, port=str(port)) as flows, intercepting(shop, port):
        active(flows)
        with talking(shop, port, version) as ask:
            assert ask("/echo?q=1", TRACED, body=b"12345") == "app"
            assert ask("/x", DEV) == "handler"
        app, handler = (answer_of(flows, line) for line in lines(flows, 2))
        first = flows.of("request")[0]
    assert (first["protocol"], first["tls"]) == ("http/1.1" if version == "h1" else "h2", port == scene.TLS_PORT)
    assert first["trace"] == TRACE
    assert_tls(first["tls_facts"], port, version)
    assert (app["status"], app["by"], app["sent"], app["received"], app["whole"]) == (200, "app", 5, 5, True)
    assert ["x-served-by", "app"] in app["fields"]
    assert 0 <= app["seconds"] < 30
    assert (handler["status"], handler["by"]) == (200, "handler")
    assert handler["handler"].startswith("shop/")


@pytest.mark.parametrize("version", VERSIONS)
def test_who_intercepts_or_copies_is_told_the_answer(shop, version):  # noqa: F811
    port = scene.PLAIN_PORT
    with intercepting(shop, port) as intercept, tapping(shop, port) as recorder:
        with talking(shop, port, version) as ask:
            assert ask("/mine", DEV) == "handler"
            assert ask("/tapped", TAP) == "app"
        for running, by in ((intercept, "handler"), (recorder.running, "app")):
            [answered] = answers_of(running)
            [request] = running.of("request")
            assert answered["number"] == request["number"] > 0
            assert answered["pod"] == request["pod"]
            assert (answered["answer"]["status"], answered["answer"]["by"]) == (200, by)
            assert (["x-served-by", "app"] in answered["answer"]["fields"]) == (by == "app")


def test_a_request_that_waits_is_shown_without_its_answer_and_then_with_it(shop):  # noqa: F811
    port = scene.PLAIN_PORT
    with flowing(shop, "--output", "text", port=str(port)) as flows:
        active(flows)
        with shop.client(port=port) as client:
            client.send(f"GET /hold HTTP/1.1\r\nHost: {scene.HOST}\r\n\r\n".encode())
            assert shop.app.holding.acquire(timeout=10)
            until(lambda: "not answered yet" in flows.process.output(), within=15, what=flows.process.output)
            shop.app.release.set()
            try:
                late = "answered late: 200 by app"
                until(lambda: late in flows.process.output(), within=15, what=flows.process.output)
            finally:
                shop.app.release.clear()


@pytest.mark.parametrize("path", ["/drop", "/half"])
def test_answers_that_are_not_whole(shop, path):  # noqa: F811
    port = scene.PLAIN_PORT
    with flowing(shop, port=str(port)) as flows:
        active(flows)
        with shop.client(port=port) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: {scene.HOST}\r\n\r\n".encode())
            [line] = lines(flows, 1)
            answer = answer_of(flows, line)
    assert answer["status"] == (0 if path == "/drop" else 200)
    assert not answer["whole"]
    assert answer["received"] == (0 if path == "/drop" else 4)


def test_only_some_statuses(shop):  # noqa: F811
    port = scene.PLAIN_PORT
    with flowing(shop, "--http-status", "5xx", "--http-status", "none", port=str(port)) as flows:
        active(flows)
        with shop.client(port=port) as client:
            client.send(f"GET /drop HTTP/1.1\r\nHost: {scene.HOST}\r\n\r\n".encode())
            [line] = lines(flows, 1)
        assert shop.get("/fine", port=port).served_by == "app"
        with shop.client(port=port) as client:
            client.send(f"GET /drop?2 HTTP/1.1\r\nHost: {scene.HOST}\r\n\r\n".encode())
            told = lines(flows, 2)
    assert [each["path"] for each in told] == ["/drop", "/drop?2"]
    assert line["answer"]["status"] == 0
