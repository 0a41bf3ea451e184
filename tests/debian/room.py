"""A room: a Debian root that is entered by pivot_root(2) in mount and process namespaces of its own.

    room = Room(roots.root("tools", "bookworm", ["make"]), binds=[Bind(folder, "/work")])
    subprocess.run(room.run("make", "-C", "/work"))

The cached root is the lower layer of an overlay: what is written lands in memory, or in the folder `writes`, and the
root stays as it was made. The network is the machine's unless `own` has "net"; apt, its proxy and the trusted
authorities are the machine's in either case. When process 1 of a room ends, or whoever started it, the kernel ends all
its processes and undoes its mounts: nothing remains to be cleaned up.

`run` is a room for one command. `stay` is one that waits until it is killed; `join` is a command in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.debian import init, mirror

READY = init.READY
"""What a room that stays prints when it can be joined."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Bind(NamedTuple):
    """A file or folder of the machine, with what is mounted below it, that a room sees as `inside`."""

    outside: Path
    inside: str
    read_only: bool = False


@dataclass(frozen=True)
class Room:
    """How a root is entered. Paths given as text are absolute and those of the room."""

    root: Path
    binds: Sequence[Bind] = ()
    memory: Sequence[str] = ()
    """Folders that are empty and lie in memory."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Contents of files, which are written before anything is bound."""
    own: Sequence[str] = ()
    """Further namespaces of its own: "net", "ipc", "uts", "cgroup"."""
    hostname: str = ""
    """Needs "uts" in `own`."""
    writes: Path | None = None
    """An existing folder, on no overlay, that what is written goes to; None is memory."""
    in_place: bool = False
    """Write to the root itself: for whoever is making it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides PATH, HOME, LANG, TERM and the machine's proxies and authorities."""
    directory: str = "/"

    def run(self, *command: str | Path) -> list[str]:
        """The argument vector that runs `command` in a room that lasts as long as the command."""
        unshare = ["unshare", "--mount", "--pid", *(f"--{name}" for name in self.own)]
        alone = ["setpriv", "--pdeathsig=KILL", *unshare, "--fork", "--kill-child=SIGKILL"]
        words = [str(word) for word in command]
        return [*alone, sys.executable, "-I", str(Path(init.__file__)), json.dumps(self._settings()), *words]

    def stay(self) -> list[str]:
        """The argument vector of a room that waits; it prints `READY` on a line of its own."""
        return self.run()

    def join(self, pid: int, *command: str | Path) -> list[str]:
        """The argument vector that runs `command` in the room whose process 1 is `pid`, seen from outside."""
        spaces = [f"--{name}" for name in ("mount", "pid", *self.own)]
        variables = [f"{name}={value}" for name, value in self._environment().items()]
        words = [str(word) for word in command]
        inside = ["env", "-i", f"--chdir={self.directory}", *variables, *words]
        return ["nsenter", f"--target={pid}", *spaces, "--root", "--wd", "--", *inside]

    def _environment(self) -> dict[str, str]:
        usual = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}
        return {**usual, **mirror.environment(), **self.environment}

    def _settings(self) -> dict[str, object]:
        return {
            "root": str(self.root),
            "in_place": self.in_place,
            "writes": None if self.writes is None else str(self.writes),
            "own": list(self.own),
            "hostname": self.hostname,
            "copies": ["/etc/hosts", "/etc/apt/auth.conf.d", *mirror.TRUST],
            "files": {**_resolver(), "/etc/apt/apt.conf.d/99machine": mirror.apt_settings(), **self.files},
            "memory": list(self.memory),
            "binds": [[str(one.outside), one.inside, one.read_only] for one in self.binds],
            "environment": self._environment(),
            "directory": self.directory,
        }


def _resolver() -> dict[str, str]:
    """The machine's resolv.conf, by content: on many machines it is a link into /run."""
    path = Path("/etc/resolv.conf")
    return {str(path): path.read_text()} if path.exists() else {}
