"""A running `sidestep wiretap`, and the handler of one that writes down what it is given.

A `Recorder` speaks the version in which it is spoken to. `copies` are the requests that arrived whole, of both
versions; `connections[n].received` the bytes, `broken` counts streams and connections that ended before their request.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.harness.cli import Intercept
from tests.harness.http1 import ClosedError, Message
from tests.harness.http2 import PREFACE
from tests.harness.node import Node
from tests.harness.peers import Connection, Server
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

_numbers = itertools.count(1)


@dataclass
class Copied:
    """One request as a tap's handler saw it."""

    path: str
    method: str = "GET"
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)


class Recorder(Server):
    """See the module. `answers` false: requests are read and never answered."""

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, answers: bool = True, record: bool = True, port: int = 0
    ) -> None:
        super().__init__(_record, name="tap", tls=tls, record=record, port=port)
        self.answers = answers
        self.running: Intercept | None = None
        """The wiretap that copies to it, when the test has set one."""
        self.copies: list[Copied] = []
        self.broken = 0
        self.lock = threading.Lock()

    @property
    def paths(self) -> list[str]:
        return sorted(each.path for each in self.copies)

    def wait(self, count: int, *, within: float = 10.0) -> list[Copied]:
        """Wait until so many requests have come whole."""
        until(lambda: len(self.copies) >= count, within=within, what=lambda: f"{count} copies, not {self.paths}")
        return self.copies


def _record(server: Server, connection: Connection) -> None:
    assert isinstance(server, Recorder)
    reader = connection.reader
    try:
        while len(reader.buffer) < len(PREFACE) and PREFACE.startswith(bytes(reader.buffer)):
            reader.fill()
        if reader.buffer.startswith(PREFACE):
            _record_http2(server, connection)
        else:
            _record_http1(server, connection)
    except OSError:
        with server.lock:
            server.broken += 1
        raise


def _record_http1(server: Recorder, connection: Connection) -> None:
    reader = connection.reader
    while True:
        message = Message(reader.until(b"\r\n\r\n"))
        try:
            reader.read_body(message, response=False)
        except ClosedError:
            with server.lock:
                server.broken += 1
            raise
        with server.lock:
            server.copies.append(Copied(message.target, message.method, message.fields, message.body or b""))
        if message.header("upgrade"):
            reader.rest()
            return
        if server.answers:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntap")


def _record_http2(server: Recorder, connection: Connection) -> None:
    config = h2.config.H2Configuration(client_side=False, header_encoding="latin-1", normalize_inbound_headers=False)
    talk = h2.connection.H2Connection(config)
    talk.initiate_connection()
    begun: dict[int, Copied] = {}
    while True:
        connection.send(talk.data_to_send())
        for event in talk.receive_data(connection.reader.some()):
            match event:
                case h2.events.RequestReceived():
                    head: dict[Any, Any] = dict(event.headers)
                    begun[event.stream_id] = Copied(head.get(":path", ""), head[":method"], list(event.headers))
                case h2.events.DataReceived():
                    begun[event.stream_id].body += event.data
                    talk.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.TrailersReceived():
                    begun[event.stream_id].trailers = list(event.headers)
                case h2.events.StreamEnded():
                    with server.lock:
                        server.copies.append(begun.pop(event.stream_id))
                    if server.answers:
                        talk.send_headers(event.stream_id, [(":status", "200")])
                        talk.send_data(event.stream_id, b"tap", end_stream=True)
                case h2.events.StreamReset():
                    with server.lock:
                        server.broken += 1


@contextlib.contextmanager
def wiretap(
    node: Node, port: str, *options: str | Path, pods: int | None = 1, command: str = "wiretap"
) -> Iterator[Intercept]:
    """Run `sidestep wiretap orders --port PORT` and wait until it is active on `pods` pods (None: do not wait)."""
    label = f"{command}-{next(_numbers)}"
    words = [SIDESTEP, command, "orders", "-n", "shop", "--output", "json", "--socket", node.socket, *options]
    if port:
        words += ["--port", port]
    process = Process(words, log=node.folder / f"{label}.log", stdout=node.folder / f"{label}.jsonl")
    with process:
        running = Intercept(process)
        if pods is not None:
            running.wait_active(pods=pods)
        yield running
        process.signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(5)
