"""The daemon of a node whose pods attack it all at once: its memory, and how long its event loop is away.

The attackers are those who write a pod's manifest and files, proxies that were taken over (`tests.harness.
hostile_proxy`), and whoever can reach the port of probes and metrics. Beside them an honest pod's request is diverted.
The same daemon is watched at rest first; both figures are printed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidestep.aio.meter import BOUNDS
from sidestep.protocols import pem
from tests.harness import manifests, processes, scene
from tests.harness.cli import intercept, sidestep
from tests.harness.hostile_proxy import BASE
from tests.harness.namespaces import pod_namespace
from tests.harness.peers import Server, http_app
from tests.harness.warm import SIDESTEP

pytestmark = pytest.mark.alone

TAKEN_OVER = (1, 3, 4, 6, 10)
"""Attacks of `hostile_proxy`, one pod each."""
REST, ATTACK = 3.0, 8.0
"""Seconds of watching."""
MEMORY = 150 * 1024 * 1024
STALL = 2.5
"""Seconds; the goal on an idle machine is 0.1. A turn is measured on the wall clock; attackers have the CPUs, too."""

TLS_PATH = "telepresence.io/downstream-tls-path"
PORTS = [manifests.container_port(number) for number in range(10_000, 11_000)]
SERVICE_PORTS = [{"name": f"p{number}", "port": number, "targetPort": number} for number in range(10_000, 10_200)]
MISSPELT = {f"telepresence.io/downstream-tls-pth{number}.10000": "/tls" for number in range(3000)}


@dataclass(frozen=True)
class Watch:
    """What a daemon did meanwhile."""

    stall: float
    """The upper bound of the histogram's bucket that the longest turn is in."""
    memory: int
    cpu: float


def inspection(node):
    """The command line that is told what the pods that were taken over say."""
    words = ("inspect", "evil", "-n", "shop", "--port", scene.PLAIN_PORT, "-o", "json", "--socket", node.socket)
    return [SIDESTEP, *map(str, words)]


@contextlib.contextmanager
def watched(node):
    """Fills a list with one Watch."""
    found = []
    before, began, spent = node.status()["node"]["loop"]["turns"], time.monotonic(), processes_cpu(node.pid)
    processes.reset_peak(node.pid)
    yield found
    after = node.status()["node"]["loop"]["turns"]
    grown = [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if new > old]
    stall = [*BOUNDS, float("inf")][max(grown)]
    cpu = (processes_cpu(node.pid) - spent) / (time.monotonic() - began)
    found.append(Watch(stall, processes.peak(node.pid), cpu))


def processes_cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def write_evil(shop, spaces):
    """One workload whose pods' proxies are taken over, and one whose author means harm."""
    labels = {"app": "evil"}
    evil = [
        manifests.pod(
            f"evil-{number}",
            space,
            ports=[manifests.container_port(scene.PLAIN_PORT, "http")],
            labels=labels,
            owner=("Deployment", "evil"),
        )
        for number, space in enumerate(spaces)
    ]
    shop.node.write("evil.yaml", manifests.deployment("evil", labels=labels), *evil)


def write_mass(shop, space, turn):
    """Many ports, service ports and annotations, different each time."""
    notes = {
        **MISSPELT,
        f"{TLS_PATH}.10001": "/crafted",
        f"{TLS_PATH}.10002": "/many",
        "sidestep.dev/root": str(shop.folder / "root"),
        "turn": str(turn),
    }
    mass = manifests.pod("mass-1", space, ports=PORTS, labels={"app": "mass"}, annotations=notes)
    service = manifests.service("mass", *SERVICE_PORTS, selector={"app": "mass"})
    shop.node.write("mass.yaml", mass, service)


def write_files(shop):
    """A file of 2,000 certificates, and a key whose numbers are large and no primes."""
    good = shop.authority.issue(scene.HOST)
    for name in ("crafted", "many"):
        good.write(shop.folder / "root" / name)
    (shop.folder / "root/many/tls.crt").write_bytes(good.chain * 2000)
    (shop.folder / "root/crafted/tls.key").write_bytes(crafted_key())


def crafted_key():
    """RSA (RFC 8017, A.1.2) whose primes nobody has tested."""

    def element(kind, content):
        size = len(content)
        length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
        return kind + length + content

    p, q = (1 << 24_000) + 1, (1 << 24_000) + 3
    numbers = (0, p * q, 65537, 3, p, q, 3, 3, 3)
    body = b"".join(element(b"\x02", each.to_bytes(each.bit_length() // 8 + 1, "big")) for each in numbers)
    return pem.encode("RSA PRIVATE KEY", element(b"\x30", body))


def flood(port, stop):
    """Connect from one address, as fast as it goes, and say nothing."""
    while not stop.is_set():
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.3", 0))
            sock.settimeout(0.5)
            sock.connect(("127.0.0.1", port))


@pytest.mark.timeout(300)
def test_a_daemon_whose_pods_attack_it_stays_small_and_prompt(tmp_path, capsys):
    with contextlib.ExitStack() as stack:
        shop = stack.enter_context(scene.shop(tmp_path, start=False))
        app = {"netns": shop.space.pod, "address": shop.space.ip, "port": scene.PLAIN_PORT}
        stack.enter_context(Server(http_app, **app))
        taken = [stack.enter_context(pod_namespace(ipv6=False)) for _ in TAKEN_OVER]
        for space, attack in zip(taken, TAKEN_OVER, strict=True):
            space.pod.run("ip", "address", "add", f"{BASE}{attack}/32", "dev", "lo")
        author = stack.enter_context(pod_namespace(ipv6=False))
        write_files(shop)
        write_evil(shop, taken)
        write_mass(shop, author, 0)
        shop.node.prefix = (sys.executable, "-m", "tests.harness.hostile_node", tmp_path / "port")
        shop.node.start()
        node, stop, told = shop.node, threading.Event(), tmp_path / "told.jsonl"
        stack.enter_context(shop.intercept(port=scene.PLAIN_PORT, plaintext=True))

        def diverted():
            assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"

        diverted()
        with watched(node) as rest:
            time.sleep(REST)
        with watched(node) as attack:
            to = (
                "--port",
                f"{shop.plain_handler.port}:{scene.PLAIN_PORT}",
                "--plaintext",
                "--http-header",
                "x-dev=ada",
            )
            stack.enter_context(intercept(node, "evil", *to, pods=None))
            stack.enter_context(processes.Process(inspection(node), log=tmp_path / "told.log", stdout=told))
            strangers = threading.Thread(target=flood, args=(int((tmp_path / "port").read_text()), stop))
            strangers.start()
            stack.callback(strangers.join)
            stack.callback(stop.set)
            end, turn = time.monotonic() + ATTACK, 0
            for port in (10_001, 10_002):
                words = ("intercept", "pod/mass-1", "-n", "shop", "--port", f"1:{port}", "--http-header", "a=b")
                assert sidestep(*words, socket=node.socket, within=60).code == 1
            while time.monotonic() < end:
                turn += 1
                write_mass(shop, author, turn)
                diverted()
        with capsys.disabled():
            for name, (watch,) in (("at rest", rest), ("attacked", attack)):
                print(
                    f"\n{name}: {watch.memory >> 20} MiB, longest turn < {watch.stall:g} s, CPU {watch.cpu:.2f}", end=""
                )
        shown = [json.loads(line) for line in told.read_text().splitlines() if line.endswith("}")]
        whose = [each["kubernetes"] for each in shown if "kubernetes" in each]
        assert all(each["namespace"] == "shop" and each["pod"].startswith("evil-") for each in whose)
        forged = node.records()
        assert {each["kubernetes"].get("namespace", "") for each in forged} <= {"shop", ""}
        assert "http" in {each["event_type"] for each in forged} <= {"http", "stats"}
        assert not any("forged" in each.get("stats", {}) for each in forged)
        assert attack[0].memory < MEMORY
        assert attack[0].stall <= max(STALL, 4 * rest[0].stall)
        diverted()
