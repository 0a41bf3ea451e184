"""Captures in trouble: a reader that is too slow, a daemon that is killed, a file that may not be written."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading

import pytest

from tests.harness import scene, tshark
from tests.harness.cli import sidestep
from tests.harness.http2 import any_app
from tests.harness.peers import Server, server_context
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP
from tests.system.test_capture import H1, capturing

BODY = 3_000_000
CLIENTS = 6


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An app that speaks HTTP/1 and HTTP/2 over TLS."""
    with scene.shop(tmp_path_factory.mktemp("faults")) as shop:
        tls = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
        with Server(any_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls, record=False):
            yield shop


def test_a_slow_reader_loses_and_is_told_how_much(wide):
    """Nobody reads the pipe while clients come and go, and for some time after. Each byte of a connection is in the
    file, or in a gap of its sequence numbers, or it is reset there and counted. The clients notice nothing."""
    words = ("capture", "orders", "-n", "shop", "--port", str(scene.TLS_PORT), "--snap", "all", "-w", "-")
    line = [SIDESTEP, *words, "--socket", str(wide.node.socket)]
    of_app, data = f"tcp.srcport=={scene.TLS_PORT}", bytearray()

    def counters():
        [view] = wide.node.status()["intercepts"]
        return view["counters"]

    def whole():
        """The connections whose end is in the file, at the number that all their bytes make."""
        only = f"{of_app} && tcp.flags.fin==1"
        rows = tshark.rows(tshark.so_far(bytes(data)), ["tcp.stream", "tcp.seq"], only=only)
        assert all(int(row["tcp.seq"]) > BODY for row in rows), "what is missing of a connection is a gap"
        return len(rows)

    piping = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with piping as piped, contextlib.ExitStack() as stack:
        stack.callback(piped.kill)  # whatever happens; it has ended by itself otherwise
        assert b"Capturing" in piped.stderr.readline()
        for _ in range(CLIENTS):
            answer = wide.get(f"/bytes/{BODY}", options=["--http1.1"])
            assert answer.status == 200
            assert len(answer.body) == BODY
        until(lambda: counters()["copies_dropped"], within=60, every=0.5, what="the first that is given up")
        reader = threading.Thread(
            target=lambda: [data.extend(each) for each in iter(lambda: os.read(piped.stdout.fileno(), 1 << 16), b"")]
        )
        reader.start()
        stack.callback(reader.join, 30)
        stack.callback(piped.kill)
        until(lambda: not counters()["open"], within=60, every=0.5, what=lambda: f"all streams to end: {counters()}")
        found = lambda: whole() + counters()["copies_dropped"] >= CLIENTS  # noqa: E731
        until(found, within=60, every=1.0, what=lambda: f"all connections: {whole()} are whole, {counters()}")
        piped.send_signal(signal.SIGINT)
        reader.join(30)
        said = piped.stderr.read().decode()
        assert piped.wait(20) == 0, said
    counted = re.search(r"Not captured, because there was no room: (\d+) bytes of them, and (\d+)", said)
    assert counted, said
    assert int(counted[2]) >= CLIENTS - whole()
    assert int(counted[2]) > 0
    present = tshark.rows(bytes(data), ["tcp.len"], only=of_app)
    assert sum(int(row["tcp.len"]) for row in present) < CLIENTS * BODY


def test_a_daemon_that_is_killed_interrupts_a_capture_and_the_next_one_goes_on(wide):
    with capturing(wide, "--snap", "all") as capture:
        assert wide.get("/before", options=["--http1.1"]).status == 200

        def seen(path):
            there = tshark.so_far(capture.path.read_bytes())
            rows = tshark.rows(there, ["http.request.uri"], only="http.request", options=H1)
            return path in {row["http.request.uri"] for row in rows}

        until(lambda: seen("/before"), within=30, every=0.5, what=capture.process.text)
        wide.node.kill()
        until(lambda: "Interrupted" in capture.process.text(), within=20, what=capture.process.text)
        assert wide.get("/between", options=["--http1.1"]).status == 200
        wide.node.start()

        def active():
            views = wide.node.status()["intercepts"]
            return [each for each in views if each["kind"] == "capture" and each["state"]["pods"]]

        until(active, within=30, every=0.2, what=wide.node.status)

        def again():
            wide.get("/after", options=["--http1.1"])
            return seen("/after")

        until(again, within=40, every=0.5, what=capture.process.text)
        file = capture.stop()
    assert tshark.complaints(file, *H1) == []
    rows = tshark.rows(file, ["http.request.uri"], only="http.request", options=H1)
    assert {row["http.request.uri"] for row in rows} == {"/before", "/after"}
    assert "a capture of decrypted traffic has ended" in wide.node.log()


def test_a_capture_that_is_refused_changes_no_file(wide):
    words = ("-n", "shop", "--port", str(scene.TLS_PORT), "-w")
    path = wide.folder / "kept.pcapng"
    path.write_bytes(b"kept")
    refused = sidestep("capture", "nobody", *words, path, socket=wide.node.socket)
    assert refused.code == 1
    assert path.read_bytes() == b"kept"
    link = wide.folder / "link.pcapng"
    link.symlink_to(path)
    for target, told in ((link, "is a link"), ("/dev/null", "is a device"), ("/absent/a.pcapng", "does not exist")):
        refused = sidestep("capture", "orders", *words, target, socket=wide.node.socket)
        assert refused.code != 0
        assert told in refused.stderr
    assert path.read_bytes() == b"kept"
