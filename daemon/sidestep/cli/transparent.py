"""`--transparent`: a command whose TCP connections all go through the proxy, by proxychains4 (proxychains-ng).

proxychains4 preloads a library into the command and its children, in the place of connect(2) and getaddrinfo(3):
connections go through the SOCKS proxy, and names are looked up there. It needs no right. It does not work for programs
that are linked statically or make their system calls themselves (Go's), for setuid programs, and for UDP.

Its configuration holds the proxy's password: it is a file that only this user may read, in a folder that is removed
with the command. The variable PROXYCHAINS_CONF_FILE leads to it, because the port is not known yet when the command
line is made. Loopback stays this machine's, as in NO_PROXY, so that the proxy's own variables still work.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidestep.model.errors import ConfigurationError

if TYPE_CHECKING:
    from sidestep.laptop.outbound.server import Urls

PROGRAM: Final = "proxychains4"
CONNECT: Final = 30
"""Seconds for the proxy's answer: longer than a pod's proxy takes to look a name up and connect."""


def check() -> None:
    """Raise ConfigurationError where it cannot be done."""
    if sys.platform != "linux":
        raise ConfigurationError("needs Linux", subject="--transparent")
    if shutil.which(PROGRAM) is None:
        reason = f"needs the program {PROGRAM}, which is not installed (Debian and Ubuntu: package {PROGRAM})"
        raise ConfigurationError(reason, subject="--transparent")


def wrapped(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line that runs a command so. It ends with the command's exit code, and has its process id."""
    return (PROGRAM, "-q", *command)


@contextlib.contextmanager
def configuration(urls: Urls) -> Iterator[dict[str, str]]:
    """Keep a configuration for this proxy; yields the variables that `wrapped` needs."""
    with tempfile.TemporaryDirectory(prefix="sidestep-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "proxychains.conf"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_text(urls))
        yield {"PROXYCHAINS_CONF_FILE": str(path)}


def _text(urls: Urls) -> str:
    """proxychains.conf: its times are in milliseconds."""
    lines = (
        "strict_chain",
        "quiet_mode",
        "proxy_dns",
        f"tcp_read_time_out {CONNECT * 1000}",
        f"tcp_connect_time_out {CONNECT * 1000}",
        "localnet 127.0.0.0/255.0.0.0",
        "localnet ::1/128",
        "[ProxyList]",
        f"socks5 {urls.host} {urls.port} {urls.user} {urls.password}",
    )
    return "".join(f"{line}\n" for line in lines)
