"""`sidestep inspect` through a real daemon: what curl and nginx exchange is told as it happens, without any secret."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections import Counter

import pytest

from sidestep.laptop.local_client import LocalClient
from sidestep.laptop.records import RecordHandler
from sidestep.laptop.session import Session
from sidestep.tunnel.messages import SessionSpec
from tests.harness import scene
from tests.harness.cli import sidestep
from tests.harness.inspection import is_refusal, policies, policy, rule
from tests.harness.processes import Process
from tests.harness.waiting import SLACK, until
from tests.harness.warm import SIDESTEP

HTTP = [pytest.param("--http1.1", id="h1"), pytest.param("--http2", id="h2")]
CARD = "4111111111111111"
TOKEN = "S3CRETtoken"
RULES = (
    rule(),
    rule("/noted", name="noted", action="Log"),
    {"name": "cards", "patterns": [{"builtin": "CardNumber"}], "action": "Alert"},
)
_numbers = itertools.count(1)


class Inspection:
    """A running `sidestep inspect --output json`."""

    def __init__(self, process):
        self.process = process

    def lines(self):
        return [json.loads(line) for line in self.process.output().splitlines() if line.endswith("}")]

    def records(self, *types):
        return [each for each in self.lines() if each.get("event_type") in types]

    def wait(self, count, *types, within=10.0):
        def look():
            found = self.records(*types)
            return found if len(found) >= count else None

        return until(look, within=within, what=lambda: f"{count} of {types}: {self.process.output()[-4000:]}")

    def lost(self):
        return sum(each["count"] for each in self.lines() if each.get("event") == "lost")

    def stop(self):
        self.process.signal(signal.SIGINT)
        assert self.process.wait(20) == 0, self.process.text()


def is_told(line):
    return line.get("event") == "note" and "Ctrl-C ends it" in line["text"]


@contextlib.contextmanager
def inspecting(shop, *options, port=scene.TLS_PORT):
    number = next(_numbers)
    line = [SIDESTEP, "inspect", "orders", "-n", "shop", "--socket", shop.node.socket, "-o", "json", *options]
    line += ["--port", str(port)] if port else []
    log = shop.folder / f"inspect-{number}.log"
    with Process(line, log=log, stdout=log.with_suffix(".jsonl")) as process:
        made = Inspection(process)
        until(
            lambda: any(map(is_told, made.lines())) or not process.running,
            within=40,
            what=lambda: f"the inspection to begin: {process.text()} {process.output()}",
        )
        assert process.running, process.text()
        yield made


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The scene with nginx, which speaks HTTP/2, as the app."""
    with scene.shop(tmp_path_factory.mktemp("shop")) as shop, scene.shop_nginx(shop, http2=True) as app:
        shop.nginx = app
        yield shop


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """The same on a node that writes no records."""
    off = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "annotations": {"sidestep.dev/eve": "off"}}}
    with scene.shop(tmp_path_factory.mktemp("quiet"), start=False) as shop, scene.shop_nginx(shop, http2=True):
        shop.node.eve = None
        shop.node.write("node.yaml", off)
        shop.node.start()
        yield shop


def is_steered(shop):
    return bool((shop.node.status() or {}).get("pods"))


@pytest.mark.parametrize("version", HTTP)
def test_every_request_is_told_where_there_is_no_policy(shop, version):
    before = len(shop.node.records())
    with inspecting(shop) as inspection:
        shop.get_in_turn([(f"/{number}?q={TOKEN}",) for number in range(5)], options=[version, "--cookie", TOKEN])
        told = inspection.wait(5, "http")
        assert [each["http"]["url"] for each in told] == [f"/{number}?q=[redacted]" for number in range(5)]
        assert [each["http"]["status"] for each in told] == [200] * 5
        assert {each["sidestep"]["inspected"] for each in told} == {False}
        [tls] = inspection.records("tls")
        assert tls["tls"]["sni"] == scene.HOST
        assert tls["sidestep"]["tls"]["alpn"] == ("h2" if version == "--http2" else "http/1.1")
        inspection.wait(1, "flow")
        assert {each["flow_id"] for each in inspection.records("http", "tls", "flow")} == {tls["flow_id"]}
        for each in told:
            assert each["kubernetes"]["pod"] == "orders-1"
            assert ("http2" in each["http"]) is (version == "--http2")
        inspection.stop()
        assert TOKEN not in inspection.process.output()
        assert inspection.lost() == 0
    assert len(shop.node.records()) == before
    until(lambda: not is_steered(shop), within=40, what="the pod to be no target any more")


@pytest.mark.parametrize("version", HTTP)
@pytest.mark.parametrize("where", ["shop", "quiet"])
def test_what_rules_find_is_told_whatever_the_node_writes(request, where, version):
    shop = request.getfixturevalue(where)
    with policies(shop, policy(*RULES, log={"samplePercent": 100})), inspecting(shop) as inspection:
        options = [version, "--cookie", TOKEN]
        answer = shop.get(f"/admin/users?token={TOKEN}", f"Authorization: Bearer {TOKEN}", options=options)
        assert is_refusal(answer)
        assert shop.get(f"/noted?a={TOKEN}", options=options).status == 200
        assert shop.get(f"/pay/{CARD}", options=options).status == 200
        assert shop.get("/echo", options=[*options, "--data", f"{TOKEN} {CARD}"]).status == 200
        alerts = inspection.wait(3, "alert")
        requests = inspection.wait(4, "http")
        assert [each["sidestep"]["action"] for each in alerts] == ["Block", "Alert", "Alert"]
        assert alerts[0]["sidestep"]["id"] in answer.text
        logged = [each for each in requests if "rule" in each["sidestep"]]
        assert [each["sidestep"]["rule"] for each in logged] == ["noted"]
        told = [each for each in requests if each not in logged]
        assert [each["http"]["url"] for each in told] == ["/noted?a=[redacted]", "[redacted]", "/echo"]
        assert {each["sidestep"]["inspected"] for each in told} == {True}
        inspection.stop()
        for secret in (TOKEN, CARD):
            assert secret not in inspection.process.output()


def test_a_filter_chooses_what_is_told(shop):
    rules = (rule(), rule("/api", name="api", action="Alert"))
    with policies(shop, policy(*rules)), inspecting(shop, "--http-path-prefix", "/api") as inspection:
        assert is_refusal(shop.get("/admin"))
        shop.get("/other")
        shop.get("/api/1")
        inspection.wait(1, "http")
        inspection.wait(1, "alert")
        inspection.wait(1, "flow")
        assert [each["http"]["url"] for each in inspection.records("http", "alert")] == ["/api/1"] * 2
        assert len(inspection.records("tls")) == 1


def test_alerts_alone(shop):
    with policies(shop, policy(*RULES)), inspecting(shop, "--alerts", port=scene.PLAIN_PORT) as inspection:
        shop.get("/", port=scene.PLAIN_PORT)
        shop.get("/noted", port=scene.PLAIN_PORT)
        with shop.client(port=scene.PLAIN_PORT) as client:
            client.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n")
            with contextlib.suppress(OSError):
                client.sock.recv(65536)
        assert is_refusal(shop.get("/admin", port=scene.PLAIN_PORT))
        inspection.wait(1, "alert")
        inspection.wait(1, "anomaly")
        kinds = [each["event_type"] for each in inspection.lines() if "event_type" in each]
        assert sorted(kinds) == ["alert", "anomaly"]


def test_a_connection_that_is_older_is_told_of_from_its_next_request_on(shop):
    with policies(shop, policy(rule())), shop.client(port=scene.PLAIN_PORT) as client:
        assert client.get("/first").status == 200
        with inspecting(shop, port=scene.PLAIN_PORT) as inspection:
            assert client.get("/second").status == 200
            [told] = inspection.wait(1, "http")
            assert (told["http"]["url"], told["http"]["status"]) == ("/second", 200)


def test_a_reader_that_does_not_read_slows_nothing(shop):
    """Its own records are lost, and counted; those of another session are not."""
    log = shop.folder / "stuck.log"
    line = [SIDESTEP, "inspect", "orders", "-n", "shop", "--socket", str(shop.node.socket), "-o", "eve"]
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("wb"))
        stuck = subprocess.Popen([*line, "--port", str(scene.TLS_PORT)], stdout=subprocess.PIPE, stderr=errors)
        stack.enter_context(stuck)
        stack.callback(stuck.kill)
        until(lambda: "Ctrl-C" in log.read_text(), within=40, what="the inspection to begin")
        inspection = stack.enter_context(inspecting(shop))
        asked = 0

        def is_behind():
            nonlocal asked
            asked += load(shop, 200)
            until(lambda: told(inspection) >= asked, within=30, what=lambda: f"{asked}: {told(inspection)}")
            return "came faster than they were read" in log.read_text()

        until(is_behind, within=90, what="losses")
        assert not any(each.get("reason") == "reader" for each in inspection.lines())
        counted = [each["counters"] for each in shop.node.status()["intercepts"]]
        assert all(each["records"] > 100 for each in counted)
        stuck.send_signal(signal.SIGINT)
        read = stuck.stdout.read()
        assert stuck.wait(20) == 0
        assert {json.loads(each)["event_type"] for each in read.splitlines()[:-1]} <= {"http", "tls", "flow"}


def load(shop, count):
    """So many requests, whose records are large; their number."""
    base = f"https://{shop.space.ip}:{scene.TLS_PORT}/"
    command = ["h2load", "-n", str(count), "-c", "2", "-m", "2", "-H", f"user-agent: {'x' * 1000}", base]
    subprocess.run(shop.space.client.enter(command), check=True, capture_output=True, timeout=60)
    return count


def told(inspection):
    """How many records came of requests, and how many of any kind were lost: no fewer than the requests, in the end."""
    return len(inspection.records("http")) + inspection.lost()


def test_a_session_comes_back_when_the_daemon_was_killed(tmp_path):
    with scene.shop(tmp_path) as shop, scene.shop_nginx(shop), inspecting(shop) as inspection:
        shop.get("/before")
        inspection.wait(1, "http")
        shop.node.kill()
        assert shop.get("/meanwhile").status == 200
        shop.node.start()

        def again():
            assert shop.get("/after").status == 200
            return any(each["http"]["url"] == "/after" for each in inspection.records("http"))

        until(again, within=20, what=lambda: f"the inspection to be back: {inspection.process.output()}")
        assert any("Interrupted" in each.get("text", "") for each in inspection.lines())


def test_a_hundred_sessions_at_once(shop):
    """Each is told of each request of its port."""
    ports = [scene.PLAIN_PORT, scene.TLS_PORT] * 50
    asyncio.run(_many(shop, ports))


async def _many(shop, ports):
    got = Counter()
    sessions = [_session(shop, number, port, got) for number, port in enumerate(ports)]
    running = [asyncio.create_task(each.run()) for each in sessions]
    try:
        told = lambda: [each["state"]["pods"] for each in (shop.node.status() or {}).get("intercepts", ())]  # noqa: E731

        def are_active():
            states = [pod["state"] for pods in told() for pod in pods]
            return len(states) == len(ports) and not {"pending", "failed"}.intersection(states)

        await _until(are_active, 60, told)
        for number in range(3):
            for port in (scene.PLAIN_PORT, scene.TLS_PORT):
                assert (await asyncio.to_thread(shop.get, f"/{number}", port=port)).status == 200
        await _until(lambda: len(got) == len(ports) and min(got.values()) >= 3, 30, lambda: got)
        assert set(got.values()) == {3}
    finally:
        for each in sessions:
            each.stop()
        await asyncio.gather(*running)


def _session(shop, number, port, got):
    async def take(record, _line):
        if record.event_type == "http":
            got[number] += 1

    spec = SessionSpec(namespace="shop", workload="orders", port=str(port), kind="wiretap", records="all")
    client = LocalClient(shop.node.socket)
    return Session(client=client, spec=spec, handler=RecordHandler(take), observer=Ignoring())


class Ignoring:
    """A `SessionObserver` that nothing is done with."""

    def registered(self, hello):
        pass

    def event(self, event):
        pass

    def interrupted(self, reason):
        pass

    def handler_refused(self, opening, reason):
        pass


async def _until(condition, within, what):
    """As `until`, in the event loop."""
    deadline = time.monotonic() + within * SLACK
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.1)


def test_text_on_a_terminal_is_coloured_and_harmless(shop):
    """What a client sends cannot speak to the terminal; NO_COLOR leaves the colours out."""
    evil = "\x1b]0;owned\x07\x9b31m\u202eevil"
    for variables, coloured in (({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)):
        with policies(shop, policy(rule())):
            shown = on_a_terminal(shop, variables, lambda: is_refusal(shop.get("/admin", f"User-Agent: {evil}")))
        assert ("\x1b[31mBLOCKED\x1b[0m" in shown) is coloured
        rest = shown.replace("\x1b[31m", "").replace("\x1b[33m", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
        rest = rest.replace("\x1b[32m", "")
        assert rest.replace("\r\n", "").isprintable(), rest
        assert "GET " in rest


def on_a_terminal(shop, variables, act):
    """What a terminal gets while `act` is done."""
    ours, theirs = pty.openpty()
    line = [SIDESTEP, "inspect", "orders", "-n", "shop", "--socket", str(shop.node.socket)]
    line += ["--port", str(scene.TLS_PORT)]
    environment = {**os.environ, "TERM": "xterm", **variables}
    process = subprocess.Popen(line, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    read = bytearray()

    def reading():
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                read.extend(data)

    thread = threading.Thread(target=reading)
    thread.start()
    try:
        until(lambda: b"Ctrl-C" in read, within=40, what=lambda: f"the inspection to begin: {bytes(read)!r}")
        assert act()
        until(lambda: b"BLOCKED" in read, within=10, what=lambda: f"the alert: {bytes(read)!r}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        thread.join(10)
        os.close(ours)
    return read.decode()


def test_it_ends_by_itself_and_by_leave(shop):
    done = sidestep(
        "inspect", "orders", "-n", "shop", "--port", str(scene.TLS_PORT), "--for", "1s", socket=shop.node.socket
    )
    assert done.code == 0, done.stderr
    assert "0 records." in done.stdout
    with inspecting(shop) as inspection:
        [view] = shop.node.status()["intercepts"]
        assert view["kind"] == "inspection"
        assert sidestep("leave", view["name"], "-n", "shop", socket=shop.node.socket).code == 0
        inspection.process.wait(10)
        assert any("Ended: ended by" in each.get("text", "") for each in inspection.lines())
    log = shop.node.log()
    assert "an inspection begins" in log, log[-3000:]
    assert "an inspection has ended" in log


def test_the_list_says_which_policies_inspect_a_port(shop):
    with policies(shop, policy(rule()), policy(rule(), name="audit", mode="Detect", ports=[scene.TLS_PORT])):
        [view] = sidestep("list", "-o", "json", socket=shop.node.socket).stdout.splitlines()
        ports = {each["number"]: each["policies"] for each in json.loads(view)["ports"]}
        assert ports[scene.TLS_PORT] == ["shop/audit (Detect)", "shop/orders (Enforce)"]
        assert ports[scene.PLAIN_PORT] == ["shop/orders (Enforce)"]
        shown = sidestep("list", socket=shop.node.socket).stdout
        assert "INSPECTED BY" in shown
        assert "shop/audit (Detect), shop/orders (Enforce)" in shown
