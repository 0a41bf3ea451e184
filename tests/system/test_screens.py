"""Screens in docs/wiretap.md and docs/kubernetes.md are those of real runs: the same commands, with a real daemon,
print the same.

What differs from run to run is replaced on both sides: times, durations, addresses of clients and handlers.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness import scene
from tests.harness.processes import Process
from tests.harness.taps import Recorder
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP
from tests.system.test_wiretap import DEV, intercepting, shop, talking  # noqa: F401 - a fixture

DOCS = Path(__file__).parents[2] / "docs"
TURNS = 5
MINE = ("--http-header", "=".join(DEV), "--name", "ada")
CHANGING = (
    (r"\d\d:\d\d:\d\d", "TIME"),
    (r"\b\d+(\.\d+)? (µs|ms|s)\b", "DURATION"),
    (r"(from|copied) [0-9.]+:\d+", r"\1 CLIENT"),
    (r"127\.0\.0\.1:\d+", "HANDLER"),
)


def alike(text):
    """A screen without what differs from run to run."""
    for pattern, name in CHANGING:
        text = re.sub(pattern, name, text)
    return text.splitlines()


def documented_file(file):
    """The only YAML that a document has a whole file of, `sidestep.yaml`."""
    block = re.compile(r"^```yaml\n(# yaml-language-server.*?)^```$", re.DOTALL | re.MULTILINE)
    [found] = block.findall((DOCS / file).read_text())
    return found


def documented(file, command):
    """What a document says that a command prints."""
    block = re.compile(rf"^```\n\$ {re.escape(command)}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    [found] = block.findall((DOCS / file).read_text())
    return found


@pytest.fixture
def running(shop, tmp_path):  # noqa: F811 - the fixture
    """A function that starts a command as a document writes it, with what a local daemon needs, until the test ends."""
    begun = []

    def start(command):
        if begun:
            begun[-1].stop()
        words = [SIDESTEP, *command.split()[1:], "--socket", shop.node.socket]
        log = tmp_path / f"{len(begun)}.err"
        process = Process(words, log=log, stdout=log.with_suffix(".out"))
        begun.append(process)
        until(lambda: "Ctrl-C ends it" in process.output(), within=20, what=lambda: process.output() + process.text())
        return process

    yield start
    if begun:
        begun[-1].stop()


def wait_lines(process, count):
    """What was printed, once it has so many lines, but for those of the time before the pod was ready."""

    def printed():
        return [line for line in process.output().splitlines() if not re.search(r" is pending\.$| waits: ", line)]

    until(lambda: len(printed()) >= count, within=20, what=process.output)
    return "\n".join(printed())


def assert_shown(file, command, run):
    """What `run` has printed is in the document. A busy machine takes longer than a line waits for its answer: once
    more then."""
    for _ in range(TURNS):
        printed = run()
        if "not answered yet" not in printed:
            break
    assert alike(printed) == alike(documented(file, command))


def test_flows(shop, running):  # noqa: F811 - the fixture
    command = "sidestep flows orders -n shop --http-path-prefix /api/"

    def run():
        flows = running(command)
        with talking(shop, scene.TLS_PORT, "h1") as ask:
            assert ask("/api/carts") == "app"
            wait_lines(flows, 2)
            assert ask("/api/orders", body=b'{"cart": 7}') == "app"
            wait_lines(flows, 3)
            assert ask("/api/orders", DEV) == "handler"
            assert ask("/health") == "app"
        return wait_lines(flows, 4)

    with intercepting(shop, scene.TLS_PORT, *MINE):
        assert_shown("wiretap.md", command, run)


def test_wiretap(shop, running):  # noqa: F811 - the fixture
    command = "sidestep wiretap orders -n shop --port 9000:https --http-method POST --plaintext"

    def run():
        with Recorder() as recorder:
            wiretap = running(command.replace("9000", str(recorder.port)))
            with talking(shop, scene.TLS_PORT, "h1") as ask:
                assert ask("/api/carts") == "app"
                assert ask("/api/orders", body=b'{"cart": 7}') == "app"
            assert [each.path for each in recorder.wait(1)] == ["/api/orders"]
            return wait_lines(wiretap, 2)

    with intercepting(shop, scene.TLS_PORT, *MINE):
        assert_shown("wiretap.md", command, run)


def test_up(shop, running, tmp_path):  # noqa: F811 - the fixture
    (tmp_path / "sidestep.yaml").write_text(documented_file("kubernetes.md"))
    (tmp_path / "server.py").write_text("import signal; signal.pause()")

    def run():
        up = running(f"sidestep up -f {tmp_path / 'sidestep.yaml'}")
        return "\n".join(sorted(wait_lines(up, 2).splitlines()))

    assert_shown("kubernetes.md", "sidestep up", run)
