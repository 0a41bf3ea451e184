"""`sidestep` from an interpreter that has imported it: half of the tests' processor time went into imports.

One process for the daemon, and one for all other commands, imports what those import, runs none of it, and forks for
each start. The child has the arguments, variables, working directory and standard streams of who started it, and does
what `sidestep` does from its first line on. What differs: its parent, its command line in /proc, the moment when
modules are imported, the seed of hashes, which all of one starter share, and which pages of memory it shares. So these
start the ordinary way:

    what tests with the marker `cold` or `alone` start,    `allowed`, set by tests/conftest.py
    and the scenes of a file with such a mark
    benchmarks, the demo, `make soak`: no tests at all     likewise
    what another program starts, such as nsenter           its command line does not begin with `SIDESTEP`
    what has variables that an interpreter reads           `Starter.suits`
    what is started in another namespace or cgroup, with   `Starter.suits`
    other limits, or for other processors

States of a child, as who started it sees it, by its number:

    asked       the request is sent; who asked waits for its pidfd. If that wait breaks off, the child is killed when
                its pidfd comes, for which it is waited `FAREWELL` more
    running     its pidfd says so
    ended       its pidfd says so; its status comes from the process that forked it, which reaps it. If that process is
                gone, or says nothing, the status is `UNKNOWN`

Signals go through the pidfd: they never meet another process that has the pid now.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import io
import itertools
import json
import math
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from sidestep.cli.importing import uncollected

SIDESTEP: Final = str(Path(sys.executable).parent / "sidestep")
"""The command as it is installed beside the interpreter that runs the tests."""
MESSAGE: Final = 1 << 17
"""Bytes of a message at most; a start with more words and variables is an ordinary one."""
IMPORTS: Final = 120.0
"""Seconds for the imports ..."""
ANSWER: Final = 60.0
"""... and for each answer."""
FAREWELL: Final = 5.0
"""Seconds for which one whose start was broken off is waited for, to be ended at once."""
UNKNOWN: Final = 255
"""Exit status of a child of which nobody knows it any more."""
PLACE: Final = ("ns/net", "ns/mnt", "ns/pid", "ns/user", "cgroup")
"""What of a thread, in /proc, its children have as well."""
DAEMON: Final = ("sidestep.cli.node", "sidestep.node.daemon")
_READ: Final = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC", "COVERAGE", "OPENSSL", "SSL_", "TZ")
"""Beginnings of the names of variables that an interpreter, or a library of C, reads at its start."""
_PR_SET_NAME: Final = 15

allowed = False
"""Whether anything may be started this way now."""


class WarmProcess:
    """A process as `subprocess.Popen` has it, as far as tests use it."""

    def __init__(self, starter: Starter, number: int, pid: int, pidfd: int, args: Sequence[str]) -> None:
        self._starter = starter
        self._number = number
        self._pidfd = pidfd
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None

    def __del__(self) -> None:
        if self.returncode is None:
            warnings.warn(f"process {self.pid} still runs", ResourceWarning, stacklevel=2)
        os.close(self._pidfd)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._look(0.0)

    def wait(self, timeout: float = math.inf) -> int:
        """Wait until it has ended; raises subprocess.TimeoutExpired after so many seconds."""
        end = time.monotonic() + timeout
        while (code := self._look(min(1.0, end - time.monotonic()))) is None:
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _look(self, within: float) -> int | None:
        if self.returncode is None and _is_readable(self._pidfd, within):
            self.returncode = self._starter.status(self._number)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Starter:
    """The process that forks, as the tests see it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._begun: dict[int, tuple[int, int]] = {}
        """Pid and pidfd of those whose start is awaited."""
        self._broken_off: set[int] = set()
        self._ended: dict[int, int] = {}
        self._is_gone = False
        self._environment = dict(os.environ)
        self._place = _place()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE)
        # Without a timeout of Python's, which would wait also where MSG_DONTWAIT says not to.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(ANSWER), 0))
        with theirs:
            # It ends when this process does, whose end of the channel is the only one.
            self._process = subprocess.Popen(
                [Path(SIDESTEP).with_name("python3"), "-m", "tests.harness.warm", str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd=Path(__file__).parents[2],
            )
        self._channel = ours
        if not _is_readable(ours.fileno(), IMPORTS) or not ours.recv(MESSAGE):
            raise AssertionError("the interpreter that starts sidestep in tests did not import it")

    def suits(self, environment: Mapping[str, str], size: int) -> bool:
        """Whether a process with these variables could be its child: the interpreter reads none anew."""
        own = self._environment
        changed = {name for name in environment.keys() | own.keys() if environment.get(name) != own.get(name)}
        return (
            not self._is_gone
            and not any(name.startswith(_READ) for name in changed - {"PYTHONPATH"})
            and size < MESSAGE
            and _place() == self._place
        )

    def start(self, words: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]) -> WarmProcess | None:
        """Start one with these standard streams; None if nobody is there to start it."""
        umask = os.umask(0o022)
        os.umask(umask)
        number = next(self._numbers)
        request = {"number": number, "words": words, "environment": dict(environment), "umask": umask}
        data = json.dumps({**request, "folder": os.getcwd()}).encode()
        try:
            socket.send_fds(self._channel, [data], list(streams))
            end = time.monotonic() + ANSWER
            while number not in self._begun and not self._is_gone and time.monotonic() < end:
                self._hear(1.0)
            if self._is_gone:
                return None
            assert number in self._begun, f"sidestep was not started in tests within {ANSWER:g} s"
            pid, pidfd = self._begun.pop(number)
        except OSError as error:
            self._is_gone = self._is_gone or error.errno != errno.EMSGSIZE
            return None
        except BaseException:
            self._give_up(number)
            raise
        return WarmProcess(self, number, pid, pidfd, [SIDESTEP, *words])

    def _give_up(self, number: int) -> None:
        self._broken_off.add(number)
        if number in self._begun:
            _end(self._begun.pop(number)[1])
        end = time.monotonic() + FAREWELL
        while number in self._broken_off and not self._is_gone and time.monotonic() < end:
            self._hear(1.0)

    def status(self, number: int) -> int:
        """The exit status of one that has ended."""
        end = time.monotonic() + ANSWER
        while number not in self._ended and not self._is_gone and time.monotonic() < end:
            self._hear(1.0)
        return self._ended.pop(number, UNKNOWN)

    def _hear(self, within: float) -> None:
        """Take a message if one comes, be it about another child: threads wait side by side."""
        if not _is_readable(self._channel.fileno(), within):
            return
        with self._lock:
            try:
                data, fds, _, _ = socket.recv_fds(self._channel, MESSAGE, 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            told = json.loads(data) if data else {}
            if not told:
                self._is_gone = True
            elif "status" in told:
                self._ended[told["number"]] = told["status"]
            elif told["number"] in self._broken_off:
                _end(fds[0])
                self._broken_off.discard(told["number"])
            else:
                self._begun[told["number"]] = (told["pid"], fds[0])


_starters: dict[bool, Starter] = {}
_making = threading.Lock()


def starter(words: Sequence[str], environment: Mapping[str, str]) -> Starter | None:
    """Who can start `sidestep` with these words and variables; None: nobody, it has to be started the ordinary way."""
    is_daemon = words[:1] == ["node"]
    with _making:
        found = _starters.get(is_daemon)
        if found is None:
            found = _starters[is_daemon] = Starter(DAEMON if is_daemon else _commands())
    size = sum(len(each) + 8 for each in words) + sum(len(name) + len(value) + 8 for name, value in environment.items())
    return found if found.suits(environment, 2 * size) else None


def popen(
    command: Sequence[str | Path], environment: Mapping[str, str], *, stdin: int, stdout: int, stderr: int
) -> WarmProcess | None:
    """Start `command` if it is `sidestep` and somebody can; None: start it the ordinary way."""
    program, *words = map(str, command)
    if not allowed or program != SIDESTEP:
        return None
    found = starter(words, environment)
    return None if found is None else found.start(words, environment, (stdin, stdout, stderr))


def spawn(
    command: Sequence[str | Path],
    *,
    stdout: IO[bytes] | int,
    stderr: IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes] | WarmProcess:
    """As `subprocess.Popen`, with nothing to read; each variable replaces one of this process's."""
    variables = {**os.environ, **(environment or {})}
    output = stdout if isinstance(stdout, int) else stdout.fileno()
    with open(os.devnull, "rb") as nothing:
        found = popen(command, variables, stdin=nothing.fileno(), stdout=output, stderr=stderr.fileno())
        return found or subprocess.Popen(
            [*map(str, command)], env=variables, stdin=nothing, stdout=stdout, stderr=stderr
        )


def run(
    command: Sequence[str | Path], *, within: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with its output as text; each variable replaces one of this process's."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = spawn(command, stdout=output, stderr=errors, environment=environment)
        try:
            code = process.wait(within)
        except BaseException:
            process.kill()
            process.wait(ANSWER)
            raise
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess([*map(str, command)], code, output.read().decode(), errors.read().decode())


# --- the process that forks -------------------------------------------------------------------------------------------


def serve(channel: socket.socket, modules: Sequence[str]) -> dict[str, Any] | None:
    """Fork for each request. Returns None when nobody is left, and in a child what it was asked for."""
    with uncollected():
        for each in modules:
            importlib.import_module(each)
    # Ctrl-C is for the others; what a child is sent before it can take it waits until it can (`become`).
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGCHLD, lambda *_: None)
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _tell(channel, ready=True)
    numbers: dict[int, int] = {}
    sources: list[Any] = [channel, read]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if read in ready:
            os.read(read, 1024)
            _reap(channel, numbers)
        if channel in ready:
            data, fds, _, _ = socket.recv_fds(channel, MESSAGE, 3)
            if not data:
                return None
            request = json.loads(data)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                return {**request, "fds": fds}
            numbers[pid] = request["number"]
            pidfd = os.pidfd_open(pid)
            _tell(channel, [pidfd], number=request["number"], pid=pid)
            for fd in (*fds, pidfd):
                os.close(fd)


def _reap(channel: socket.socket, numbers: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _tell(channel, number=numbers.pop(pid), status=os.waitstatus_to_exitcode(status))


def _tell(channel: socket.socket, fds: Sequence[int] = (), **facts: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        socket.send_fds(channel, [json.dumps(facts).encode()], fds)


def become(request: Mapping[str, Any]) -> None:
    """Have this process look as one that was just started with what was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    stdin, stdout, stderr = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.__stdin__ = _text(io.BufferedReader(io.FileIO(0, closefd=False)), stdin)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text(_writer(1), stdout, line_buffering=os.isatty(1))  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(_writer(2), stderr, line_buffering=True)  # type: ignore[misc]
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"sidestep", 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _writer(fd: int) -> io.BufferedWriter:
    return io.BufferedWriter(io.FileIO(fd, "wb", closefd=False))


def _text(buffer: Any, like: Any, *, line_buffering: bool = False) -> io.TextIOWrapper:
    return io.TextIOWrapper(buffer, encoding=like.encoding, errors=like.errors, line_buffering=line_buffering)


def _place() -> tuple[object, ...]:
    task = Path("/proc/thread-self")
    named = (str((task / each).readlink()) if "/" in each else (task / each).read_text() for each in PLACE)
    limits = (resource.getrlimit(each) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK))
    return (*named, *limits, os.nice(0), frozenset(os.sched_getaffinity(0)))


def _end(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def _commands() -> list[str]:
    from sidestep.cli.main import COMMANDS

    return sorted({where.partition(":")[0] for name, (where, _) in COMMANDS.items() if name != "node"})


def _is_readable(fd: int, within: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, within) * 1000))


if __name__ == "__main__":
    asked = serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    if asked is not None:
        become(asked)
        from sidestep.cli.main import main

        sys.exit(main())  # type: ignore[func-returns-value]
