"""`sidestep` from an interpreter that has imported it: half of the tests' processor time went into imports.

One process for the daemon, and one for all other commands, imports what those import, runs none of it, and forks for
each start. The child has the arguments, variables, working directory and standard streams of who started it, and does
what `sidestep` does from its first line on. What differs: its parent, its command line in /proc, and the moment when
modules are imported. So these start the ordinary way:

    what is about the start itself, or about memory     `warm=False` of `Process`, `Node` and `sidestep`
    what another program starts, such as nsenter        its command line does not begin with `SIDESTEP`
    what has variables that an interpreter reads        `suits`
    what is started in another namespace or cgroup,     `suits`
    with other limits, or for other processors
    what a benchmark or the demo starts                 they run without pytest

States of a child, as who started it sees it:

    running     `poll` returns None
    ended       told once by the process that forked it, which reaps it at once: the pid may be another's then
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import math
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

SIDESTEP: Final = str(Path(sys.executable).parent / "sidestep")
"""The command as it is installed beside the interpreter that runs the tests."""
MESSAGE: Final = 1 << 17
"""Bytes of a message at most; a start with more words and variables is an ordinary one."""
START: Final = 120.0
"""Seconds for the imports."""
PLACE: Final = ("ns/net", "ns/mnt", "ns/pid", "ns/user", "cgroup")
"""What of a thread, in /proc, its children have as well."""
DAEMON: Final = ("sidestep.cli.node", "sidestep.node.daemon")
_PR_SET_NAME: Final = 15


class WarmProcess:
    """A process as `subprocess.Popen` has it, as far as tests use it."""

    def __init__(self, starter: Starter, pid: int, args: Sequence[str]) -> None:
        self._starter = starter
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._starter.status(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """Wait until it has ended; raises subprocess.TimeoutExpired after so many seconds."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            left = end - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._starter.status(self.pid, min(left, 1.0))
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Starter:
    """The process that forks, as the tests see it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._ended: dict[int, int] = {}
        self._environment = dict(os.environ)
        self._place = _place()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE)
        with theirs:
            # It ends when this process does, whose end of the channel is the only one.
            self._process = subprocess.Popen(
                [Path(SIDESTEP).with_name("python3"), "-m", "tests.harness.warm", str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd=Path(__file__).parents[2],
            )
        self._channel = ours
        assert self._next(START) == {"ready": True}, "the interpreter that starts sidestep in tests did not import it"

    def suits(self, environment: Mapping[str, str], size: int) -> bool:
        """Whether a process with these variables could be its child: the interpreter reads none anew."""
        read = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC", "COVERAGE", "OPENSSL", "SSL_", "TZ")
        changed = {
            name
            for name in environment.keys() | self._environment.keys()
            if environment.get(name) != self._environment.get(name)
        }
        return (
            not any(name.startswith(read) for name in changed - {"PYTHONPATH"})
            and size < MESSAGE
            and _place() == self._place
            and self._process.poll() is None
        )

    def start(self, words: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]) -> int:
        """Start one with these standard streams; returns its pid."""
        umask = os.umask(0o022)
        os.umask(umask)
        request = {"words": words, "environment": dict(environment), "folder": os.getcwd(), "umask": umask}
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], list(streams))
            while "pid" not in (told := self._next(START)):
                self._note(told)
        return int(told["pid"])

    def status(self, pid: int, within: float) -> int | None:
        """The exit status of one that has ended; waits so many seconds until one has."""
        with self._lock:
            while pid not in self._ended and select.select([self._channel], [], [], within)[0]:
                self._note(self._next(START))
                within = 0.0
            return self._ended.pop(pid, None)

    def _note(self, told: Mapping[str, Any]) -> None:
        self._ended[told["ended"]] = told["status"]

    def _next(self, within: float) -> dict[str, Any]:
        self._channel.settimeout(within)
        data = self._channel.recv(MESSAGE)
        assert data, "the interpreter that starts sidestep in tests is gone"
        found: dict[str, Any] = json.loads(data)
        return found


_starters: dict[bool, Starter] = {}
_making = threading.Lock()


def starter(words: Sequence[str], environment: Mapping[str, str]) -> Starter | None:
    """Who can start `sidestep` with these words and variables; None: nobody, it has to be started the ordinary way."""
    if not words:
        return None
    is_daemon = words[0] == "node"
    with _making:
        found = _starters.get(is_daemon)
        if found is None:
            found = _starters[is_daemon] = Starter(DAEMON if is_daemon else _commands())
    size = sum(len(each) + 8 for each in words) + sum(len(name) + len(value) + 8 for name, value in environment.items())
    return found if found.suits(environment, 2 * size) else None


def popen(
    command: Sequence[str], environment: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> WarmProcess | None:
    """Start `command` if it is `sidestep` and somebody can; None: start it the ordinary way."""
    if not command or command[0] != SIDESTEP:
        return None
    found = starter(command[1:], environment)
    return (
        WarmProcess(found, found.start(command[1:], environment, (stdin, stdout, stderr)), command) if found else None
    )


def spawn(
    command: Sequence[str], *, stdout: IO[bytes] | int, stderr: IO[bytes]
) -> subprocess.Popen[bytes] | WarmProcess:
    """As `subprocess.Popen`, with nothing to read and the variables of this process."""
    output = stdout if isinstance(stdout, int) else stdout.fileno()
    with open(os.devnull, "rb") as nothing:
        found = popen(command, os.environ, stdin=nothing.fileno(), stdout=output, stderr=stderr.fileno())
        return found or subprocess.Popen(command, stdin=nothing, stdout=stdout, stderr=stderr)


def run(
    command: Sequence[str | Path], *, within: float, environment: Mapping[str, str] | None = None, warm: bool = True
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with its output as text; each variable replaces one of this process's."""
    variables = {**os.environ, **(environment or {})}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, open(os.devnull, "rb") as nothing:
        streams = {"stdin": nothing.fileno(), "stdout": output.fileno(), "stderr": errors.fileno()}
        process = popen(command, variables, **streams) if warm else None
        if process is None:
            done = subprocess.run(
                command, env=variables, timeout=within, check=False, stdin=nothing, stdout=output, stderr=errors
            )
            code = done.returncode
        else:
            try:
                code = process.wait(within)
            except BaseException:
                process.kill()
                raise
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess([*map(str, command)], code, output.read().decode(), errors.read().decode())


def _place() -> tuple[object, ...]:
    task = Path("/proc/thread-self")
    named = (str((task / each).readlink()) if "/" in each else (task / each).read_text() for each in PLACE)
    limits = (resource.getrlimit(each) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK))
    return (*named, *limits, os.nice(0), frozenset(os.sched_getaffinity(0)))


def _commands() -> list[str]:
    from sidestep.cli.main import COMMANDS

    return sorted({where.partition(":")[0] for name, (where, _) in COMMANDS.items() if name != "node"})


# --- the process that forks -------------------------------------------------------------------------------------------


def serve(channel: socket.socket, modules: Sequence[str]) -> dict[str, Any] | None:
    """Fork for each request. Returns None when nobody is left, and in a child what it was asked for."""
    gc.disable()
    for each in modules:
        importlib.import_module(each)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _tell(channel, ready=True)
    sources: list[Any] = [channel, read]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if read in ready:
            os.read(read, 1024)
            _reap(channel)
        if channel in ready:
            data, fds, _, _ = socket.recv_fds(channel, MESSAGE, 3)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                return {**json.loads(data), "fds": fds}
            for fd in fds:
                os.close(fd)
            _tell(channel, pid=pid)


def _reap(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _tell(channel, ended=pid, status=os.waitstatus_to_exitcode(status))


def _tell(channel: socket.socket, **facts: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        channel.send(json.dumps(facts).encode())


def become(request: Mapping[str, Any]) -> None:
    """Have this process look as one that was just started with what was asked for."""
    for number, fd in enumerate(request["fds"]):
        os.dup2(fd, number)
    os.closerange(3, 4096)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [SIDESTEP, *request["words"]]
    sys.path[0] = str(Path(SIDESTEP).parent)
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _writer(1, "strict")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _writer(2, "backslashreplace")  # type: ignore[misc]
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"sidestep", 0, 0, 0)


def _writer(fd: int, errors: str) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(fd, "wb", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=os.isatty(fd))


if __name__ == "__main__":
    asked = serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    if asked is not None:
        become(asked)
        from sidestep.cli.main import main

        sys.exit(main())  # type: ignore[func-returns-value]
