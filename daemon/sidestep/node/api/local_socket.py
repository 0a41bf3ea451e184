"""The unix socket's path in the file system: permissions, the daemon that serves it now, and replacing it.

The socket is created under a temporary name with mode 0600 and renamed into place. It therefore never has another mode,
and replaces a socket file left by a killed daemon without a gap.

Upgrade: a new daemon connects to the one behind the path, puts its own socket in place, and then asks the old one over
that connection to drain. Some daemon answers at any time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from pathlib import Path

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import ConfigurationError

HANDOVER_TIMEOUT = 5.0
"""Seconds for the replaced daemon to answer."""
BACKLOG = 128


def prepare_folder(folder: Path) -> None:
    """Create the folder with mode 0700, or check that nobody else can create a socket in it. Raises
    ConfigurationError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            "others may write there; choose a socket in a folder of its own", subject="folder", value=str(folder)
        )


def predecessor_at(path: Path) -> socket.socket | None:
    """Return a connection to the daemon that serves the path now; None when there is none. Raises
    ConfigurationError.
    """
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)  # the queue of a hanging daemon is full, and a connection would wait in it for ever
    try:
        probe.connect(str(path))
    except OSError:
        probe.close()
        return None
    _pid, uid, _gid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in {0, os.geteuid()}:
        probe.close()
        raise ConfigurationError(f"user {uid} answers there, who is not root", subject="socket", value=str(path))
    return probe


async def ask_to_drain(predecessor: socket.socket) -> str:
    """Tell the daemon at the other end that it was replaced; returns an error text, empty on success."""
    request = b"POST /v1/drain HTTP/1.1\r\nHost: sidestep\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    loop = asyncio.get_running_loop()
    try:
        async with time_limit(HANDOVER_TIMEOUT):
            await loop.sock_sendall(predecessor, request)
            answer = await loop.sock_recv(predecessor, 4096)
    except (OSError, TimeoutError) as error:
        return f"no answer ({error})"
    finally:
        predecessor.close()
    return "" if answer.startswith(b"HTTP/1.1 200 ") else f"it answered {answer[:60]!r}"


def listen(path: Path) -> socket.socket:
    """Create a listener, replacing whatever is at the path. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        temporary.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener.bind(str(temporary))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        temporary.rename(path)
    except BaseException:
        listener.close()
        temporary.unlink(missing_ok=True)
        raise
    return listener
