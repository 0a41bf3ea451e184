"""Callers of several kinds; each request carries what only its own answer can contain, and what became of it is kept.

A connection serves a few requests and is then replaced, so that what a kill did to connections that were open is over
soon after it. An outcome therefore covers the time from the beginning of its connection to the end of its request.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import h2.exceptions

from tests.harness import scene
from tests.harness.http1 import ClosedError
from tests.harness.http2 import Http2Client
from tests.harness.namespaces import Netns
from tests.harness.nginx import client_context
from tests.harness.peers import Client
from tests.soak.network_facts import facts

REQUESTS = 10
"""Requests of one connection."""
UDP_PORT = 9953
BLOCKED = "/blocked"
"""A path that the inspection policy blocks."""
PASSED = "not blocked: answered with 200"
"""What is wrong with a blocked request that reached the app."""
TRIES = 4
"""Times that a datagram is sent until something comes back."""
PATIENCE = 15.0
"""Seconds that a client waits for anything."""
STUCK = 6.0
"""Seconds without progress of a caller after which the kernel is asked what its connections do."""
LOOKS = 4
"""Times that it is asked at most."""

BROKEN = (ClosedError, OSError, ssl.SSLError, h2.exceptions.H2Error, ValueError, IndexError, KeyError, AssertionError)
"""What a client sees whose connection is broken in whatever state; the last ones are answers that are no HTTP."""


@dataclass(frozen=True)
class Outcome:
    """One request: when (monotonic), of which kind, and what was wrong with it; `problem` is empty when nothing was.

    `fell_back`: it matched, and the app (or a 502) answered in place of the handler.
    """

    began: float
    ended: float
    kind: str
    problem: str = ""
    fell_back: bool = False


class Echo:
    """A UDP server that returns every datagram behind its name; a context manager."""

    def __init__(self, name: str, *, netns: Netns | None = None, port: int = 0) -> None:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("0.0.0.0" if netns else "127.0.0.1", port))
            sock.settimeout(0.2)
            return sock

        self._name = name.encode()
        self._sock = netns.call(make) if netns else make()
        self.port: int = self._sock.getsockname()[1]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"udp {name}")

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                data, client = self._sock.recvfrom(4096)
            except TimeoutError:
                continue
            self._sock.sendto(self._name + b" " + data, client)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(5)
        self._sock.close()


class Traffic:
    """All callers; a context manager. `plain`: none does what cannot be inspected: long bodies, unknown protocols."""

    def __init__(self, shop: scene.Shop, *, plain: bool = False) -> None:
        self.shop = shop
        self._sizes = (4, 400, 20_000) if plain else (4, 400, 40_000)
        self.outcomes: list[Outcome] = []
        self.seen: list[str] = []
        """What the kernel said while a caller made no progress."""
        self._progress: dict[str, float] = {}
        """When each caller began its connection, or was answered (monotonic)."""
        self._end = threading.Event()
        self._numbers = itertools.count()
        kinds: dict[str, Callable[[float], None]] = {
            "h1": self._h1_clear,
            "h1 tls": self._h1_tls,
            "h2": self._h2_clear,
            "h2 tls": self._h2_tls,
            "upgrade": self._upgrade,
            "blocked": self._blocked,
            "udp": self._udp,
        }
        if plain:
            del kinds["upgrade"]
        self._threads = [
            threading.Thread(target=self._run, args=(kind, call), name=kind) for kind, call in kinds.items()
        ]
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch for callers that are stuck")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        self._over.set()
        self._watcher.join(PATIENCE)

    def _watch(self) -> None:
        told: set[tuple[str, float]] = set()
        while not self._over.wait(0.5) and len(told) < LOOKS:
            now = time.monotonic()
            stuck = {each for each in [*self._progress.items()] if now - each[1] > STUCK} - told
            if stuck:
                told |= stuck
                kinds = ", ".join(f"{kind} since {since:.2f}" for kind, since in sorted(stuck))
                self.seen.append(f"at {now:.2f} stuck: {kinds}\n{facts(self.shop.space)}")

    def _run(self, kind: str, call: Callable[[float], None]) -> None:
        while not self._end.is_set():
            began = self._progress[kind] = time.monotonic()
            try:
                call(began)
            except BROKEN as error:
                self.outcomes.append(Outcome(began, time.monotonic(), kind, f"lost: {error!r}"))
                self._end.wait(0.05)
        self._progress.pop(kind, None)

    def _keep(self, outcome: Outcome) -> None:
        """Note what became of a request."""
        self._progress[outcome.kind] = outcome.ended
        self.outcomes.append(outcome)

    def _done(self, began: float, kind: str, marked: bool, served_by: str, same: bool) -> None:
        problem = ""
        if not same:
            problem = f"another body than the one sent, from {served_by!r}"
        elif served_by not in ("app", "handler") or (served_by == "handler" and not marked):
            problem = f"answered by {served_by!r}"
        fell_back = marked and served_by == "app"
        self._keep(Outcome(began, time.monotonic(), kind, problem, fell_back))

    def _wish(self) -> tuple[bool, bytes]:
        """Whether the next request is to match, and its body: unlike any other."""
        body = b"%d " % next(self._numbers) + os.urandom(random.choice(self._sizes)).hex().encode()
        return random.random() < 0.5, body

    def _h1(self, began: float, port: int, kind: str) -> None:
        with self.shop.client(port=port, record=False) as client:
            client.sock.settimeout(PATIENCE)
            for _ in range(REQUESTS):
                self._post(began, client, kind)

    def _post(self, began: float, client: Client, kind: str) -> None:
        marked, body = self._wish()
        lines = ["POST /echo HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *([scene.DEV] if marked else [])]
        answer = client.request("\r\n".join([*lines, "", ""]).encode() + body, method="POST")
        if answer.status == 502:
            self._keep(Outcome(began, time.monotonic(), kind, fell_back=True))
        else:
            self._done(began, kind, marked, answer.header("x-served-by"), answer.body == body)

    def _blocked(self, began: float) -> None:
        with self.shop.client(port=random.choice((scene.PLAIN_PORT, scene.TLS_PORT)), record=False) as client:
            client.sock.settimeout(PATIENCE)
            for _ in range(REQUESTS):
                marked, _ = self._wish()
                status = client.get(BLOCKED, *([scene.DEV] if marked else [])).status
                problem = "" if status == 403 else f"not blocked: answered with {status}"
                self._keep(Outcome(began, time.monotonic(), "blocked", problem))

    def _h1_clear(self, began: float) -> None:
        self._h1(began, scene.PLAIN_PORT, "h1")

    def _h1_tls(self, began: float) -> None:
        self._h1(began, scene.TLS_PORT, "h1 tls")

    def _connect(self, port: int) -> socket.socket:
        address = self.shop.space.ip, port
        sock = self.shop.space.client.call(lambda: socket.create_connection(address, PATIENCE))
        sock.settimeout(PATIENCE)
        return sock

    def _h2(self, began: float, sock: socket.socket, kind: str) -> None:
        with sock:
            client = Http2Client(sock)
            for _ in range(REQUESTS):
                marked, body = self._wish()
                fields = [tuple(scene.DEV.split(": "))] if marked else []
                answer = client.request("/echo", *fields, body=body)
                if answer.reset is not None:
                    raise ClosedError(f"reset with {answer.reset}")
                if answer.headers.get(":status") == "502":
                    self._keep(Outcome(began, time.monotonic(), kind, fell_back=True))
                else:
                    self._done(began, kind, marked, answer.served_by, bytes(answer.body) == body)

    def _h2_clear(self, began: float) -> None:
        self._h2(began, self._connect(scene.PLAIN_PORT), "h2")

    def _h2_tls(self, began: float) -> None:
        sock = self._connect(scene.TLS_PORT)
        context = client_context(self.shop.authority.pem, alpn=["h2"])
        try:
            secure = context.wrap_socket(sock, server_hostname=scene.HOST)
        except BaseException:
            sock.close()
            raise
        self._h2(began, secure, "h2 tls")

    def _udp(self, began: float) -> None:
        """A client that asks again when nothing comes, as those of UDP do; the whole port is the handler's."""
        address = self.shop.space.ip, UDP_PORT

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(address)
            return sock

        with self.shop.space.client.call(make) as sock:
            sock.settimeout(0.5)
            for _ in range(REQUESTS):
                self._ask(began, sock)
                self._end.wait(0.01)

    def _ask(self, began: float, sock: socket.socket) -> None:
        text = b"datagram %d" % next(self._numbers)
        for _ in range(TRIES):
            sock.send(text)
            try:
                while (answer := sock.recv(4096)) and not answer.endswith(b" " + text):
                    pass  # the answer to an earlier try
            except TimeoutError:
                continue
            self._done(began, "udp", True, answer.removesuffix(b" " + text).decode(), True)
            return
        raise ClosedError("no answer")

    def _upgrade(self, began: float) -> None:
        """A connection that leaves HTTP, as a WebSocket does: everything comes back in upper case."""
        with self.shop.client(port=scene.PLAIN_PORT, record=False) as client:
            client.sock.settimeout(PATIENCE)
            marked, _ = self._wish()
            lines = ["GET /ws HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket"]
            lines += [scene.DEV] if marked else []
            client.send("\r\n".join([*lines, "", ""]).encode())
            head = client.reader.until(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 502 "):
                self._keep(Outcome(began, time.monotonic(), "upgrade", fell_back=True))
                return
            served_by = client.reader.until(b" ready\n").removesuffix(b" ready\n").decode()
            for _ in range(REQUESTS):
                text = b"message %d\n" % next(self._numbers)
                client.send(text)
                self._done(began, "upgrade", marked, served_by, client.reader.until(b"\n") == text.upper())
