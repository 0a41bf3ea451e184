"""Load from the laptop: threads that each open a new TLS connection, send one request, note who answered, again.

Every attempt is counted, also the failed ones with their reason, so that "nobody was refused" is a statement about all
of them. A client that meets a fault does not try again.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.cluster import Cluster, Pod
from tests.e2e.shop import DEV, HOST, TLS_PORT, Shop
from tests.harness.namespaces import Netns
from tests.harness.nginx import client_context
from tests.harness.waiting import until

PATIENCE = 10.0
"""Seconds a client waits for an answer."""


@dataclass
class Load:
    """What the clients have seen: (asked with the developer's header, answered by) or (…, an error's text)."""

    answers: Counter[tuple[bool, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def note(self, marked: bool, who: str) -> None:
        with self.lock:
            self.answers[marked, who] += 1

    @property
    def total(self) -> int:
        with self.lock:
            return sum(self.answers.values())

    def failures(self) -> dict[tuple[bool, str], int]:
        """Everything that was no answer of the app or the handler."""
        with self.lock:
            return {key: count for key, count in self.answers.items() if key[1] not in ("app", "handler")}

    def mark(self) -> Counter[tuple[bool, str]]:
        """The counts so far, to be compared with later ones."""
        with self.lock:
            return Counter(self.answers)

    def goes_on(self, requests: int = 40, *, within: float = 20.0) -> Counter[tuple[bool, str]]:
        """Wait for so many more answers; what these were."""
        before = self.mark()
        begin = sum(before.values())
        until(lambda: self.total >= begin + requests, within=within, what=f"{requests} more answers")
        return self.mark() - before


@contextlib.contextmanager
def connected(netns: Netns, ip: str, context: ssl.SSLContext) -> Iterator[http.client.HTTPSConnection]:
    """A connection that stays: once it is closed by the other side, asking on it fails."""

    def connect() -> socket.socket:
        return socket.create_connection((ip, TLS_PORT), timeout=PATIENCE)

    with (
        contextlib.closing(netns.call(connect)) as raw,
        contextlib.closing(context.wrap_socket(raw, server_hostname=HOST)) as sock,
    ):
        connection = http.client.HTTPSConnection(HOST, TLS_PORT, context=context)  # else it reads all authorities
        connection.sock = sock
        connection.auto_open = 0
        yield connection


def ask(connection: http.client.HTTPSConnection, *, marked: bool) -> str:
    """One request: who answered it."""
    name, _, value = DEV.partition(": ")
    connection.request("GET", "/load", headers={name: value} if marked else {})
    answer = connection.getresponse()
    answer.read()
    served = answer.headers.get("X-Served-By", "")
    return served if answer.status == 200 else f"status {answer.status} {served}"


def once(netns: Netns, ip: str, context: ssl.SSLContext, *, marked: bool) -> tuple[str, int]:
    """One request on a connection of its own: who answered, and the serial number of the certificate served."""
    with connected(netns, ip, context) as connection:
        certificate = connection.sock.getpeercert()
        serial = int(str(certificate["serialNumber"]), 16) if certificate else 0
        return ask(connection, marked=marked), serial


@contextlib.contextmanager
def load(netns: Netns, ips: Sequence[str], ca: Path, *, pace: float = 0.03) -> Iterator[Load]:
    """Two clients for each address, one with the developer's header and one without, until the end of the block."""
    result = Load()
    context = client_context(ca.read_bytes())

    def client(ip: str, marked: bool) -> None:
        while not result.over.is_set():
            try:
                who, _ = once(netns, ip, context, marked=marked)
            except (OSError, http.client.HTTPException) as error:
                who = f"{type(error).__name__}: {error}"
            result.note(marked, who)
            time.sleep(pace)

    threads = [threading.Thread(target=client, args=(ip, marked)) for ip in ips for marked in (True, False)]
    for thread in threads:
        thread.start()
    try:
        yield result
    finally:
        result.over.set()
        for thread in threads:
            thread.join(PATIENCE + 5)


def restart_under_load(cluster: Cluster, shop: Shop) -> list[Pod]:
    """`kubectl rollout restart`; returns the new pods. Clients meet that old ones go away, and nothing else."""
    old = shop.pods()
    with load(cluster.node.laptop, [pod.ip for pod in old], shop.ca, pace=0.05) as running:
        running.goes_on()
        assert not running.failures()
        cluster.kubectl("rollout", "restart", "deployment/orders", "-n", shop.namespace)
        cluster.wait_rollout("deployment/orders", shop.namespace)
    assert not [who for _, who in running.failures() if who.startswith("status")], running.failures()
    new = shop.wait(len(old))
    assert {pod.name for pod in old}.isdisjoint(pod.name for pod in new)
    return new
