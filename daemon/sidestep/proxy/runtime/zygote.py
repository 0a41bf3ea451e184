"""The zygote, `python -I -m sidestep.proxy.runtime.zygote FD`: has everything imported and forks pod proxies.

The daemon starts one zygote. Its only descriptors are one end of a SOCK_SEQPACKET socketpair (FD) and stdio.

Start

  1. Import everything that a proxy will need: once the sandbox is locked there is no file left to import from.
  2. Build the one TLS context with the system's CAs.
  3. Freeze the garbage collector, so that collections do not write to pages that are shared with the children.
  4. Send `Hello`.

Then it answers each `Spawn`, which brings the proxy's end of its control socketpair, with `Spawned` and a pidfd, or
with an `Ack` that says why not. It reaps its children through the same pidfds and reports unclean ends on stderr; it
has no signal handlers. It ends when its control socket closes; the proxies live on.

Child: it waits for `Stderr`, `Pulse` and `Enter`, locks the sandbox, sends `Hello`, acknowledges, and runs the worker
until that returns. Its exit status is 0 then, and 1 after an error, whose traceback it writes to its stderr for the
daemon.

Invariants: the zygote is single-threaded. It holds no key, no network namespace, and not even the names of the pods: a
child that is taken over can read everything that was in the zygote's memory.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pkgutil
import select
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from sidestep.aio.client_tls import default_client_context
from sidestep.aio.packets import ChannelClosed
from sidestep.aio.pulse import Pulse as PulsePage
from sidestep.model.errors import SidestepError
from sidestep.proxy.control.channel import ControlChannel
from sidestep.proxy.control.messages import VERSION, Ack, Enter, Hello, Pulse, Spawn, Spawned, Stderr, ToProxy, ToZygote
from sidestep.proxy.runtime import sandbox
from sidestep.proxy.tls import issuing
from sidestep.sandbox import seccomp
from sidestep.sandbox.children import Children

Worker = Callable[[ControlChannel[ToProxy], ssl.SSLContext, PulsePage], None]

WORKER = "sidestep.proxy.runtime.worker:run"
ENTER_DEADLINE = 10.0
"""Seconds a child waits for each of its first messages before it gives up."""

_PRELOADED = (
    "encodings.idna",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.punycode",
    "stringprep",
    "re2",
    "errno",
)
"""Modules that Python or a library would otherwise import at first use, when there are no files any more."""
_PRELOADED_PACKAGES = (
    "sidestep.model",
    "sidestep.snapshots",
    "sidestep.policy",
    "sidestep.protocols",
    "sidestep.engine",
)


class Zygote:
    """The parent: forks, hands out pidfds, reaps."""

    def __init__(self, channel: ControlChannel[ToZygote], worker: Worker, trust_store: ssl.SSLContext) -> None:
        self._channel = channel
        self._worker = worker
        self._trust_store = trust_store
        self._program = seccomp.assemble(os.uname().machine)
        self._poll = select.poll()
        self._children = Children(self._poll, "proxy")

    def serve(self) -> None:
        """Serve until the daemon closes the channel (ChannelClosed). Raises SidestepError for messages it cannot
        decode."""
        self._poll.register(self._channel, select.POLLIN)
        self._channel.send(Hello(self._channel.next_seq(), VERSION, os.getpid()))
        gc.collect()
        gc.freeze()
        while True:
            self._poll.modify(self._channel, select.POLLIN | (select.POLLOUT if self._channel.pending else 0))
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    _say(self._children.reap(fd))
                else:
                    self._receive()

    def _receive(self) -> None:
        self._channel.flush()
        received = self._channel.receive()
        if received is None:
            return
        spawn, fd = received
        if not isinstance(spawn, Spawn):
            return  # The acknowledgement of our hello.
        if fd is None:
            self._channel.send(Ack(spawn.seq, "the zygote cannot hold another descriptor"))
            return
        try:
            self._spawn(spawn, fd)
        except OSError as error:
            self._channel.send(Ack(spawn.seq, f"the zygote cannot fork: {error.strerror}"))
        finally:
            os.close(fd)

    def _spawn(self, spawn: Spawn, fd: int) -> None:
        pid, pidfd = self._children.fork(lambda: _child(fd, self._worker, self._trust_store, self._program))
        self._channel.send(Spawned(spawn.seq, pid), pidfd)


def _child(fd: int, worker: Worker, trust_store: ssl.SSLContext, program: bytes) -> NoReturn:
    """Run a pod proxy until this process ends; never returns to the zygote's frames."""
    status = 1
    try:
        sandbox.close_all_but(fd)
        channel: ControlChannel[ToProxy] = ControlChannel(socket.socket(fileno=fd))
        pulse = _enter(channel, program)
        if pulse is not None:
            worker(channel, trust_store, pulse)
        status = 0
    except ChannelClosed:
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - the process ends here, and the daemon reads the traceback
        _say(traceback.format_exc(limit=-12))
    finally:
        os._exit(status)


def _enter(channel: ControlChannel[ToProxy], program: bytes) -> PulsePage | None:
    """Wait for `Stderr`, `Pulse` and `Enter`, and carry them out.

    Returns None if they did not come, or if the sandbox could not be locked, which the daemon is told.
    """
    stderr, stderr_fd = _first(channel)
    if not isinstance(stderr, Stderr) or stderr_fd is None:
        return None
    os.dup2(stderr_fd, 2)
    os.close(stderr_fd)
    channel.acknowledge(stderr)
    pulse, pulse_fd = _first(channel)
    if not isinstance(pulse, Pulse) or pulse_fd is None:
        return None
    channel.acknowledge(pulse)
    enter, netns_fd = _first(channel)
    if not isinstance(enter, Enter) or netns_fd is None:
        return None
    confinement = sandbox.Confinement(uid=enter.uid, memory=enter.memory_limit, descriptors=enter.fd_limit)
    control = channel.fileno()
    try:
        page = sandbox.lock(confinement, netns_fd=netns_fd, control_fd=control, pulse_fd=pulse_fd, program=program)
    except SidestepError as error:
        channel.acknowledge(enter, str(error))
        return None
    channel.send(Hello(channel.next_seq(), VERSION, os.getpid()))
    channel.acknowledge(enter)
    return page


def _first(channel: ControlChannel[ToProxy]) -> tuple[ToProxy | None, int | None]:
    """Wait ENTER_DEADLINE seconds for the next message; None if it does not come."""
    received = channel.receive() if channel.wait(ENTER_DEADLINE) else None
    return (None, None) if received is None else received


def _say(text: str | None) -> None:
    """Write a line to stderr, in one write; an error is ignored, because nobody could be told."""
    if text is None:
        return
    try:
        os.write(2, text.encode(errors="replace")[:4000].rstrip() + b"\n")
    except OSError:
        pass


def _import_everything(worker: str) -> Worker:
    """Import what proxies need; returns the worker. Raises ImportError, AttributeError."""
    module, _, function = worker.partition(":")
    entry: Worker = getattr(importlib.import_module(module), function)
    for name in _PRELOADED:
        importlib.import_module(name)
    for package_name in _PRELOADED_PACKAGES:
        package = importlib.import_module(package_name)
        for found in pkgutil.walk_packages(package.__path__, package_name + "."):
            try:
                importlib.import_module(found.name)
            except ImportError as error:
                # The worker has imported what it needs at the start; this is what it would import later.
                _say(f"the zygote cannot load {found.name}: {error}")
    return entry


def main(arguments: list[str] | None = None) -> int:
    """Run the zygote; returns its exit status."""
    parser = argparse.ArgumentParser(prog="sidestep-zygote")
    parser.add_argument("fd", type=int, help="the control socket")
    parser.add_argument("--worker", default=WORKER, metavar="MODULE:FUNCTION")
    parser.add_argument("--path", default=None, help="a folder to import the worker from")
    options = parser.parse_args(arguments)
    # Ctrl-C in the daemon's terminal reaches the zygote, too. The daemon handles it, and drains.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if options.path is not None:
        sys.path.insert(0, options.path)
    try:
        worker = _import_everything(options.worker)
    except (ImportError, AttributeError) as error:
        _say(f"the zygote cannot load {options.worker}: {error}")
        return 1
    issuing.warm_up()
    trust_store = default_client_context()
    os.umask(0o022)  # The proxy's user has to traverse the folders of the empty root.
    channel: ControlChannel[ToZygote] = ControlChannel(socket.socket(fileno=options.fd), receives=ToZygote)
    try:
        Zygote(channel, worker, trust_store).serve()
    except ChannelClosed:
        return 0
    except SidestepError as error:
        _say(f"the zygote ends: {error}")
    return 1


if __name__ == "__main__":
    # Imported under its own name: a worker that imports this module would load a second copy of `__main__` otherwise.
    sys.exit(importlib.import_module("sidestep.proxy.runtime.zygote").main())
