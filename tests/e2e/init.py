"""Process 1 of the node: `unshare … python -m tests.e2e.init FOLDER NAME`.

It is started in mount, process, host name and network namespaces of its own and makes this place look like a machine:
a /run, a /var/lib (in memory, where there is enough) and a /var/log of its own, its name in /etc/hosts. Then it reaps
orphans for ever. When it is killed the kernel ends every process of the node, and with the last one all mounts go.

The kubelet wants to set a few kernel parameters that belong to the whole machine. It finds them set already: files with
the values it wants cover them, in this mount namespace only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

READY = "ready"
"""What is printed when the place is furnished."""

TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet (pkg/kubelet/cm, setupKernelTunables) wants under /proc/sys."""

IN_MEMORY = 8 << 30
"""Bytes of memory that must be available for images and containers (2 GiB) to lie there instead of on the disk, where
removing them takes half a minute."""

_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    words = [os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()]
    if _libc.mount(*words) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def furnish(folder: Path, name: str) -> None:
    """Make this mount namespace the file system of a machine called `name` whose data lies in `folder`."""
    socket.sethostname(name)
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {name}\n")
    mount(hosts, "/etc/hosts", flags=_MS_BIND)
    mount("tmpfs", "/run", "tmpfs", data="mode=0755")
    (folder / "log").mkdir()
    mount(folder / "log", "/var/log", flags=_MS_BIND)
    if available_memory() > IN_MEMORY:
        mount("tmpfs", "/var/lib", "tmpfs", data="mode=0755")
    else:
        (folder / "lib").mkdir()
        mount(folder / "lib", "/var/lib", flags=_MS_BIND)
    for number, (tunable, value) in enumerate(TUNABLES.items()):
        shown = folder / f"tunable-{number}"
        shown.write_text(f"{value}\n")
        if (target := Path("/proc/sys") / tunable).exists():
            mount(shown, target, flags=_MS_BIND)
    # Volumes that a container mounts into its own folders must reach the node, as on a real one.
    mount("none", "/", flags=_MS_SHARED | _MS_REC)


def available_memory() -> int:
    """Bytes that can be had without swapping (proc(5), MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def main() -> None:
    """Furnish, say so, reap."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    furnish(Path(sys.argv[1]), sys.argv[2])
    print(READY, flush=True)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.sigwait({signal.SIGCHLD})


if __name__ == "__main__":
    main()
