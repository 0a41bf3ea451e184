"""A zygote of inspectors and its inspectors, driven by blocking sockets as the daemon and a pod proxy drive them."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from sidestep.inspector.zygote_messages import FromZygote, Loaded, Spawn, Spawned
from sidestep.protocols.waf_messages import (
    PART,
    Configure,
    Configured,
    FromInspector,
    Outcome,
    Part,
    Question,
    Ready,
    Verdict,
)
from sidestep.snapshots.waf import Profile

UID = 2_000_000_000
"""The user of an inspector in tests."""
MEMORY = 256 * 1024 * 1024
AHEAD = 16
"""Questions that are asked ahead of their answers: the inspector never waits for this process."""
FIELDS = ((b"Host", b"shop.example"), (b"User-Agent", b"Mozilla/5.0"), (b"Accept", b"*/*"))
_encoder = msgspec.msgpack.Encoder()
_from_zygote = msgspec.msgpack.Decoder(FromZygote)
_from_inspector = msgspec.msgpack.Decoder(FromInspector)


@dataclass
class InspectorZygote:
    """The process; a context manager that ends it."""

    folder: str | None = None
    loaded: Loaded | None = None
    spawned: int = 0

    def __enter__(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock = ours
        ours.settimeout(60)
        options = [] if self.folder is None else ["--crs", self.folder]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "sidestep.inspector.zygote", str(theirs.fileno()), *options],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        packet = ours.recv(65536)
        if not packet:
            raise AssertionError(self.process.communicate(timeout=10)[1].decode())
        self.loaded = _from_zygote.decode(packet)
        return self

    def __exit__(self, *_):
        self.sock.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stderr.close()

    def spawn(self, *, uid=UID, memory=MEMORY):
        """An inspector that has said what became of its lock."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.spawned += 1
        data = _encoder.encode(Spawn(self.spawned, uid, memory))
        self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))])
        theirs.close()
        packet, fds, _, _ = socket.recv_fds(self.sock, 65536, 1)
        told = _from_zygote.decode(packet)
        assert isinstance(told, Spawned), told
        if told.error is not None:
            ours.close()
            raise AssertionError(told.error)
        return Inspector(ours, told.pid, fds[0])


@dataclass
class Inspector:
    """One process; a context manager that kills it."""

    sock: socket.socket
    pid: int
    pidfd: int
    asked: int = 0
    ready: Ready | None = field(default=None)

    def __post_init__(self):
        self.sock.settimeout(60)
        self.ready = self.receive()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Kill it."""
        self.kill()
        os.close(self.pidfd)
        self.sock.close()

    def kill(self):
        """Send SIGKILL; nothing if it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def receive(self):
        """The next message; None at the end."""
        packet = self.sock.recv(65536)
        return _from_inspector.decode(packet) if packet else None

    def send(self, message):
        """Send a message, or bytes as they are."""
        self.sock.send(message if isinstance(message, bytes) else _encoder.encode(message))

    def configure(self, *profiles):
        """Set the profiles; the answer."""
        profiles = profiles or (Profile(1, 5, 256),)
        for place, profile in enumerate(profiles, 1):
            self.send(Configure((profile,), more=place < len(profiles)))
        told = self.receive()
        assert isinstance(told, Configured), told
        return told

    def ask(self, method=b"GET", target=b"/", fields=(), body=b"", **options):
        """A verdict on one request; `fields` come after those of a browser."""
        self.question(method, target, (*FIELDS, *fields), body, **options)
        told = self.receive()
        assert isinstance(told, Verdict), told
        assert told.id == self.asked
        return told

    def ask_response(self, status, body, kind=b"text/html", **options):
        """A verdict on one response."""
        self.question(b"GET", b"/items?id=1", ((b"content-type", kind),), body, status=status, **options)
        told = self.receive()
        assert isinstance(told, Verdict), told
        return told

    def ask_in_turn(self, cases, fields):
        """Ask what the cases of `regression` would be answered; yields each with its verdict. `fields` tells those of
        a case."""
        hurry(self.pid)
        asked = deque()
        for case in cases:
            named = [(name.encode(), value.encode()) for name, value in fields(case)]
            version = case.version.rpartition("/")[2]
            self.question(case.method.encode(), case.uri.encode(), named, case.body, version=version)
            asked.append(case)
            if len(asked) == AHEAD:
                yield asked.popleft(), self.receive()
        while asked:
            yield asked.popleft(), self.receive()

    def question(self, method, target, fields, body=b"", *, profile=0, expires=None, version="1.1", status=0):
        """Send a question with all parts of its body."""
        self.asked += 1
        first, rest = body[:PART], body[PART:]
        self.send(
            Question(
                self.asked,
                profile,
                time.monotonic() + 60 if expires is None else expires,
                method,
                target,
                version,
                tuple(fields),
                ("10.0.0.1", 40000),
                ("10.0.0.2", 8080),
                first,
                bool(rest),
                status,
            )
        )
        while rest:
            part, rest = rest[:PART], rest[PART:]
            self.send(Part(self.asked, part, bool(rest)))


def hurry(pid):
    """Let an inspector run like any other process: by its own priority it waits for all that run beside its test."""
    os.setpriority(os.PRIO_PROCESS, pid, 0)


def form(body):
    """The fields of a form of these bytes."""
    return ((b"Content-Type", b"application/x-www-form-urlencoded"), (b"Content-Length", str(len(body)).encode()))


def json_body(body):
    """The fields of a JSON document of these bytes."""
    return ((b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode()))


__all__ = ["InspectorZygote", "Inspector", "Outcome", "hurry", "form", "json_body", "FIELDS", "UID", "MEMORY"]
