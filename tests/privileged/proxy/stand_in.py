"""A worker that stands in for the pod proxy: it obeys the control channel and runs the code that a test sends it.

Whoever connects to one of its listeners sends a line of Python source (JSON-quoted) and gets a line of JSON: the value
the code gave to `result`, or the errno and text of what it raised. That is what an attacker could do who has taken the
proxy over.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import ssl
import time
from typing import Any

from sidestep.aio.packets import ChannelClosed
from sidestep.aio.pulse import Pulse
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ControlChannel

HEARTBEAT = 0.1
MUTE = 666
"""A generation that is never acknowledged."""
DEADLY = 13
"""A generation that ends the process at once."""
REFUSED = 4
"""A generation that is answered with an error."""

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: Any) -> int:
    """Make a system call; raises OSError."""
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


class StandIn:
    """The process."""

    def __init__(self, channel: ControlChannel, trust_store: ssl.SSLContext, pulse: Pulse) -> None:
        self.channel = channel
        self.trust_store = trust_store
        self.listeners: dict[tuple[int, str], socket.socket] = {}
        self.streams: dict[int, socket.socket | str] = {}
        self.credentials: dict[str, int] = {}
        self.configuration: messages.Configure | None = None
        self.acks: dict[int, str] = {}
        self.beating = True
        self.talking = True
        self.pulse = pulse

    def run(self) -> None:
        due = time.monotonic()
        while True:
            poll = select.poll()
            for each in (self.channel, *self.listeners.values()):
                poll.register(each, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(max(0, int((due - time.monotonic()) * 1000)))}
            if self.beating and time.monotonic() >= due:
                self.pulse.beat()
                if self.talking:
                    self.send(messages.Heartbeat(0, 0, {}, {}), droppable=True)
                due = time.monotonic() + HEARTBEAT
            while (received := self.channel.receive()) is not None:
                self.obey(*received)
            for listener in list(self.listeners.values()):
                if listener.fileno() in ready:
                    self.answer(listener)

    def send(self, message: messages.Message, **options: Any) -> None:
        message.seq = self.channel.next_seq()
        self.channel.send(message, **options)

    def obey(self, message: messages.Message, fd: int | None) -> None:
        error = ""
        match message:
            case messages.Ack():
                self.acks[message.seq] = message.error
                return
            case messages.Configure():
                if message.generation == MUTE:
                    return
                if message.generation == DEADLY:
                    os._exit(1)
                if message.generation == REFUSED:
                    error = "I would rather not"
                else:
                    self.configuration = message
            case messages.Credential():
                self.credentials[message.name] = fd
                try:
                    if message.kind == "identity":
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(f"/proc/self/fd/{fd}")
                    else:
                        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(f"/proc/self/fd/{fd}")
                except (OSError, ssl.SSLError) as problem:
                    error = f"it does not load: {problem}"
            case messages.Listen():
                self.listeners[message.port, message.transport] = socket.socket(fileno=fd)
            case messages.Unlisten():
                self.listeners.pop((message.port, message.transport)).close()
            case messages.Opened():
                self.streams[message.stream] = socket.socket(fileno=fd)
            case messages.Refused():
                self.streams[message.stream] = "refused"
            case messages.Drain():
                self.channel.acknowledge(message)
                os._exit(0)
        self.channel.acknowledge(message, error)

    def answer(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.settimeout(5)
            line = b""
            while not line.endswith(b"\n"):
                line += client.recv(65536) or b"\n"
            scope: dict[str, Any] = {
                "proxy": self,
                "messages": messages,
                "os": os,
                "socket": socket,
                "ssl": ssl,
                "time": time,
                "syscall": syscall,
                "libc": _libc,
                "ctypes": ctypes,
                "result": None,
            }
            try:
                exec(json.loads(line or b'""'), scope)
                reply = {"result": scope["result"]}
            except OSError as error:
                reply = {"errno": error.errno, "error": str(error)}
            except Exception as error:  # noqa: BLE001 - whatever the test's code raises is the answer
                reply = {"errno": 0, "error": repr(error)}
            client.sendall(json.dumps(reply).encode() + b"\n")


def run(channel: ControlChannel, trust_store: ssl.SSLContext, pulse: Pulse) -> None:
    """Be the worker until the daemon is gone."""
    try:
        StandIn(channel, trust_store, pulse).run()
    except ChannelClosed:
        return


def run_broken(channel: ControlChannel, trust_store: ssl.SSLContext, pulse: Pulse) -> None:
    """Be a worker that crashes once it has started: what says so has been read, and what it was told."""
    while not channel.wait(HEARTBEAT):
        pass
    channel.receive()
    raise ValueError("this worker is broken")
