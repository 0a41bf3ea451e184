"""One inspector for a command line, `python -I -m sidestep.inspector.alone FD`: ends with whoever made it.

`sidestep policy check --replay` asks it about the requests of a capture, which is hostile: no byte of it is given to
the engine in the process of the command. It loads the rules, tells what it has loaded, locks itself
(`confinement.alone`) and answers as any inspector does. Where the engine or the rules are missing it says so in Ready,
and ends.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import socket
import sys
from typing import Final

import msgspec

from sidestep.inspector import confinement
from sidestep.inspector.regexes import Regexes
from sidestep.inspector.worker import Inspector, send
from sidestep.inspector.zygote import PRELOADED, load, loaded
from sidestep.model.errors import SidestepError
from sidestep.protocols.waf_messages import VERSION, Ready

MEMORY: Final = 256 * 1024 * 1024
"""Bytes of private writable memory."""
_encoder = msgspec.msgpack.Encoder()


def main(arguments: list[str] | None = None) -> int:
    """Be an inspector; returns the exit status."""
    parser = argparse.ArgumentParser(prog="sidestep-inspector")
    parser.add_argument("fd", type=int, help="the socket to whoever asks")
    parser.add_argument("--crs", default=None, metavar="DIR", help="a Core Rule Set as it is released")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's, which closes the socket
    for name in PRELOADED:
        importlib.import_module(name)
    sock = socket.socket(fileno=options.fd)
    try:
        engine, core = load(options.crs)
        regexes = Regexes()
        sock.send(_encoder.encode(loaded(engine, core)))
        confinement.alone(memory=MEMORY, socket_fd=options.fd)
    except SidestepError as error:
        send(sock, Ready(VERSION, str(error)[:1000]))
        return 1
    Inspector(sock, engine, core, regexes).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
