"""The zygote of the inspectors, `python -I -m sidestep.inspector.zygote FD`: has the rules loaded and forks inspectors.

The daemon starts one zygote per node. Its only descriptors are one end of a SOCK_SEQPACKET socketpair (FD) and stdio.

Start: import everything, load libmodsecurity and the Core Rule Set, judge one request (which fills what the libraries
fill at first use), enclose itself (`confinement`), send `Loaded`, freeze the garbage collector, so that collections do
not write to shared pages.

Then it answers each `Spawn`, which brings the inspector's end of a socketpair, with `Spawned` and a pidfd, or with the
reason why not. It reaps its children and reports unclean ends on stderr. It ends when its socket closes; inspectors
end when theirs do.

Invariants: single-threaded; it never sees a request, a policy, or the name of a pod.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import os
import select
import signal
import socket
import sys
from typing import Final, NoReturn

import msgspec
from msgspec.structs import replace

from sidestep.aio.packets import ChannelClosed, Outbox, receive_packet
from sidestep.inspector import confinement
from sidestep.inspector.modsecurity import Engine, Request
from sidestep.inspector.regexes import Regexes
from sidestep.inspector.rules import THRESHOLD, CoreRules, Location
from sidestep.inspector.worker import Inspector, send
from sidestep.inspector.zygote_messages import FromZygote, Loaded, Spawn, Spawned, ToZygote
from sidestep.model.errors import PeerError, SidestepError
from sidestep.protocols.waf_messages import VERSION, Ready
from sidestep.sandbox.children import Children
from sidestep.snapshots.waf import Profile

_decoder: msgspec.msgpack.Decoder[ToZygote] = msgspec.msgpack.Decoder(ToZygote)
_encoder = msgspec.msgpack.Encoder()
PRELOADED: Final = ("encodings.idna", "encodings.latin_1", "encodings.ascii", "errno")
"""Modules that Python would import at first use, when there are no files any more."""
_ENDED: Final = 1
"""The exit status of an inspector that could not go on."""


class Zygote:
    """The parent: forks, hands out pidfds, reaps."""

    def __init__(self, sock: socket.socket, engine: Engine, core: CoreRules) -> None:
        self._sock = sock
        self._outbox = Outbox(sock)
        self._engine = engine
        self._core = core
        self._regexes = Regexes()
        self._program = confinement.program()
        self._poll = select.poll()
        self._children = Children(self._poll, "inspector")

    def serve(self) -> None:
        """Serve until the daemon closes the socket (ChannelClosed). Raises SidestepError for what it cannot decode."""
        self._poll.register(self._sock, select.POLLIN)
        confinement.enclose()
        self._send(loaded(self._engine, self._core))
        gc.collect()
        gc.freeze()
        while True:
            self._poll.modify(self._sock, select.POLLIN | (select.POLLOUT if self._outbox.pending else 0))
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    told = self._children.reap(fd)
                    if told is not None:
                        _say(told)
                else:
                    self._receive()

    def _receive(self) -> None:
        self._outbox.flush()
        received = receive_packet(self._sock)
        if received is None:
            return
        packet, fd = received
        try:
            spawn = _decoder.decode(packet)
        except msgspec.DecodeError as error:
            raise PeerError(f"a packet that is no message: {error}") from error
        if fd is None:
            self._send(Spawned(spawn.seq, error="a socket has to come with this"))
            return
        try:
            pid, pidfd = self._children.fork(functools.partial(self._child, spawn, fd))
            self._send(Spawned(spawn.seq, pid), pidfd)
        except OSError as error:
            self._send(Spawned(spawn.seq, error=f"the zygote cannot fork: {error.strerror}"))
        finally:
            os.close(fd)

    def _send(self, message: FromZygote, fd: int | None = None) -> None:
        self._outbox.send(_encoder.encode(message), fd)

    def _child(self, spawn: Spawn, fd: int) -> NoReturn:
        """Be an inspector until this process ends; never returns to the zygote's frames."""
        status = _ENDED
        try:
            sock = socket.socket(fileno=fd)
            sock.setblocking(True)
            try:
                confined = confinement.Confinement(uid=spawn.uid, memory=spawn.memory)
                confinement.lock(confined, socket_fd=fd, filter_program=self._program)
            except SidestepError as error:
                send(sock, Ready(VERSION, str(error)[:1000]))
            else:
                Inspector(sock, self._engine, self._core, self._regexes).run()
                status = 0
        finally:
            # Whatever was raised ends the process: nobody can be told, and the daemon sees the status.
            os._exit(status)


def _say(text: str) -> None:
    """Write a line to stderr; an error is ignored, because nobody could be told."""
    try:
        os.write(2, text.encode(errors="replace")[:4000].rstrip() + b"\n")
    except OSError:
        pass


def loaded(engine: Engine, core: CoreRules) -> Loaded:
    """What is told of what was loaded."""
    return Loaded(0, VERSION, engine.version, core.names, core.version, core.left_out)


def load(folder: str | None) -> tuple[Engine, CoreRules]:
    """Load the engine and the rules: Debian's, or those in `folder`. Raises ConfigurationError."""
    engine = Engine()
    core = CoreRules.load(engine, Location.find(folder))
    core.prepare()
    rules = core.profile(Profile(1, THRESHOLD, 256))
    request = Request(
        method=b"POST",
        target=b"/?a=b",
        version=b"1.1",
        fields=((b"Host", b"localhost"), (b"Content-Type", b"application/json"), (b"Content-Length", b"2")),
        client=("127.0.0.1", 1),
        server=("127.0.0.1", 1),
        body=b"{}",
    )
    core.judgement(engine.judge(rules, request), THRESHOLD)
    responses = core.profile_of_responses(Profile(1, THRESHOLD, 256))
    core.judgement(engine.judge(responses, replace(request, status=200)), THRESHOLD)
    return engine, core


def main(arguments: list[str] | None = None) -> int:
    """Run the zygote; returns its exit status."""
    parser = argparse.ArgumentParser(prog="sidestep-inspector-zygote")
    parser.add_argument("fd", type=int, help="the socket to the daemon")
    parser.add_argument("--crs", default=None, metavar="DIR", help="a Core Rule Set as it is released")
    options = parser.parse_args(arguments)
    # Ctrl-C in the daemon's terminal reaches the zygote, too. The daemon handles it.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    os.umask(0o022)
    try:
        engine, core = load(options.crs)
        if core.left_out:
            _say(f"rules whose regexes cannot be compiled are left out: {', '.join(map(str, core.left_out))}")
        Zygote(socket.socket(fileno=options.fd), engine, core).serve()
    except ChannelClosed:
        return 0
    except SidestepError as error:
        _say(f"the zygote of the inspectors ends: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
