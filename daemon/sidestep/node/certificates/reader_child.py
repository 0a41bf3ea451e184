"""The reader, `python -I -m sidestep.node.certificates.reader_child FD`: forks a one-shot child for each request.

The daemon starts it with the first request, with one end of a SOCK_SEQPACKET socketpair and stdio as its only
descriptors. It has imported the modules that its children need. Each request arrives with a socket for its answer:

    StampRequest                     answered here: files are stamped by fstat(2); none is opened, nothing is forked
    all others                       answered by a child (`one_shot`), which then ends

Thus this process never holds content of a file, and no long-lived process holds a key. A stamp request can hang in a
file system; the daemon then kills this process and starts another. It ends after `IDLE` seconds without a request, and
when the daemon closes the socket.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
from typing import Final

import msgspec

from sidestep.aio.packets import ChannelClosed, receive_packet, send_packet
from sidestep.model.errors import SidestepError
from sidestep.node.certificates import one_shot
from sidestep.node.certificates.requests import Failed, Request, Stamped, StampRequest

IDLE: Final = 30.0
"""Seconds without a request after which the reader ends."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def serve(channel: socket.socket) -> None:
    """Serve requests until the daemon closes the socket, or for `IDLE` seconds without one. Raises SidestepError."""
    requests = msgspec.msgpack.Decoder(Request)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    gc.collect()
    gc.freeze()
    while poll.poll(IDLE * 1000) or _has_children():
        if not poll.poll(0):
            continue  # a snapshot is still being sent
        received = receive_packet(channel)
        if received is None:
            continue
        packet, fd = received
        if fd is None:
            continue
        with socket.socket(fileno=fd) as answers:
            _take(requests.decode(packet), answers)


def _has_children() -> bool:
    """Whether a child runs; those that have ended are reaped by the kernel. They end with this process."""
    try:
        return os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _take(request: Request, answers: socket.socket) -> None:
    if isinstance(request, StampRequest):
        try:
            answer: Stamped | Failed = Stamped(one_shot.stamp_of(request.source))
        except SidestepError as error:
            answer = one_shot.failed(error)
        try:
            send_packet(answers, msgspec.msgpack.encode(answer))
        except SidestepError:
            pass  # the requester has given up
        return
    try:
        pid = os.fork()
    except OSError as error:
        reason = f"the reader cannot fork: {os.strerror(error.errno or 0)}"
        send_packet(answers, msgspec.msgpack.encode(Failed(reason)))
        return
    if pid == 0:
        one_shot.run(request, answers)


def main() -> int:
    """Run the reader; returns its exit status."""
    parser = argparse.ArgumentParser(prog="sidestep-reader")
    parser.add_argument("fd", type=int, help="the socket for requests")
    parser.add_argument("--manifests", action="store_true", help="import what reads manifests, not Secrets")
    options = parser.parse_args()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C in the daemon's terminal must not end the reader
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps children
    importlib.import_module("sidestep.config.manifests" if options.manifests else "sidestep.kube.secret_fetch")
    try:
        serve(socket.socket(fileno=options.fd))
    except ChannelClosed:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(importlib.import_module("sidestep.node.certificates.reader_child").main())
