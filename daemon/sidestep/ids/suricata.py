"""One Suricata as the node daemon holds it: started in its lock-up, fed through a pipe, heard through a socket.

States, of a `Suricata`

    started    it has connected its socket for EVE records, so its configuration is good; we have both ends of its pipe
    running    the pod proxy has the only writing end of the pipe
    ended      the process is gone: its feed came to its end, it was killed, or it crashed

Invariants

  * Whoever holds the writing end of the pipe keeps Suricata alive, and nobody else does: it ends with its feed, and, if
    it does not, with the daemon's main thread (`confinement`).
  * It is killed when it says nothing for SILENCE seconds (it tells what it has seen every 2), and when a line is longer
    than MAX_LINE. It is read no faster than RATE, so that one that was taken over costs the daemon no more than that.

`check` runs `suricata -T` in the same lock-up; it returns what is wrong with rules, and the memory that they take.

Before it becomes Suricata, the process waits for a byte (`launcher`): until then `start` has it moved into a memory
cgroup, so that all that Suricata allocates is charged to that group.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from sidestep.aio.packets import sealed_memfd
from sidestep.aio.process import Process
from sidestep.aio.time_limit import time_limit
from sidestep.aio.token_bucket import TokenBucket
from sidestep.ids import suricata_config as config
from sidestep.ids.launcher import Order, find_suricata
from sidestep.model.errors import KernelError, PeerError
from sidestep.model.text import harmless
from sidestep.protocols.pcap_stream import file_header, wake_up

if TYPE_CHECKING:
    from sidestep.ids.rules import RuleSet

MEMORY: Final = 96 * 1024 * 1024
"""Bytes of private memory: what rules may take, and what connections take beside them (`suricata_config`)."""
GROUP_MEMORY: Final = 128 * 1024 * 1024
"""Bytes that its memory cgroup may be charged: MEMORY, the pages of programs that it was the first to read, and what
the kernel holds for it."""
RULES_MEMORY: Final = 64 * 1024 * 1024
"""Bytes that are resident in a Suricata which has loaded its rules, at most. It takes BASE without any."""
BASE: Final = 26 * 1024 * 1024
TEST_MEMORY: Final = 256 * 1024 * 1024
"""Bytes of private memory of a test, so that it can tell how much rules take that are too many."""
PIPE: Final = 1024 * 1024
"""Bytes that wait in the pipe for Suricata at most."""
MAX_LINE: Final = 256 * 1024
RATE: Final = 1024 * 1024
"""Bytes of records a second."""
SILENCE: Final = 20.0
START: Final = 60.0
"""Seconds for a start, or a test: some for a large set of rules, and more where others want the processors."""
LOOK: Final = 0.01
"""Seconds between two looks at the memory of a test. At its end Suricata frees what it has built: that takes longer."""
END: Final = 15.0
"""Seconds after SIGKILL until a process that the kernel does not end is left behind."""
MAX_OUTPUT: Final = 16 * 1024
"""Bytes of what a check says."""

_LINE_END: Final = re.compile(r"[\r\n]+")
_HIGH_WATER: Final = re.compile(rb"VmHWM:\s*([0-9]+) kB")
_VERSION: Final = re.compile(r"version ([0-9][0-9A-Za-z.-]{0,31})")
_NOISE: Final = re.compile(r"^(?:E|W|i|Error|Warning|Notice|Info): (?:detect(?:-parse)?|suricata): ")


class Checked(msgspec.Struct, frozen=True):
    """Why Suricata refuses rules, "" if it does not, and the bytes that were resident while it tested them."""

    problem: str
    memory: int


async def check(rules: str, *, uid: int) -> Checked:
    """Have Suricata test rules. Raises KernelError."""
    arguments = ("-T", "-c", config.CONFIG)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        popen, control = _launch(
            arguments, rules, uid=uid, stdin=subprocess.DEVNULL, output=writing, memory=TEST_MEMORY
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    loop = asyncio.get_running_loop()
    said = loop.run_in_executor(None, _read_all, reading)
    process = Process(popen.pid, os.pidfd_open(popen.pid))
    try:
        _go_on(control)
        in_time, memory = await _watch(process)
    finally:
        control.close()
        popen.kill()
        await process.wait(deadline=END)
        process.close()
    text, status = await said, popen.wait()
    if not in_time:
        return Checked(f"Suricata did not finish testing the rules within {START:g} s", memory)
    if status:
        return Checked(_reason(text, status), memory)
    return Checked(too_much(memory), memory)


def memory_of(sets: Sequence[RuleSet]) -> int:
    """Bytes that a Suricata with all of these rules takes, estimated from what each set takes alone."""
    return BASE + sum(max(0, each.memory - BASE) for each in sets)


def too_much(memory: int) -> str:
    """Why rules that take so many bytes are refused; "" if they are not."""
    if memory <= RULES_MEMORY:
        return ""
    possible = f"{_mebibytes(RULES_MEMORY)} MiB are possible"
    return f"with the rules Suricata takes {_mebibytes(memory)} MiB of memory; {possible}"


async def version() -> str:
    """The version of Suricata on this system; "" where none is installed, or it does not say."""
    return await asyncio.get_running_loop().run_in_executor(None, _version)


class Suricata:
    """See the module. Make it with `await Suricata.start(...)`."""

    def __init__(self, popen: subprocess.Popen[bytes], feed: int, events: socket.socket) -> None:
        self._popen = popen
        self.process = Process(popen.pid, os.pidfd_open(popen.pid))
        self._feed = feed
        self._events = events
        self._cause = ""

    @classmethod
    async def start(
        cls, rules: str, *, uid: int, output: int, place: Callable[[Process], Awaitable[None]] | None = None
    ) -> Self:
        """Start one. `output` is a pipe for what it prints, the caller's to close. Raises KernelError, PeerError.

        `place` is awaited before the process executes Suricata.
        """
        arguments = ("-c", config.CONFIG, "-l", config.LOGS, "-r", "-")
        reading, feed = os.pipe2(os.O_CLOEXEC)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, feed)
            os.set_blocking(feed, False)
            with contextlib.suppress(OSError):  # the kernel's default serves, too
                fcntl.fcntl(feed, fcntl.F_SETPIPE_SZ, PIPE)
            try:
                popen, control = _launch(arguments, rules, uid=uid, stdin=reading, output=output, memory=MEMORY)
            finally:
                os.close(reading)
            undo.callback(popen.wait)
            undo.callback(popen.kill)
            with control:
                os.write(feed, file_header() + wake_up())
                events = await _connected(popen, control, place)
            undo.callback(events.close)
            made = cls(popen, feed, events)
            undo.pop_all()
        return made

    @contextlib.contextmanager
    def give_feed(self) -> Iterator[int]:
        """The writing end of the pipe, to be sent to the pod proxy; closed here afterwards, whatever happens."""
        try:
            yield self._feed
        finally:
            self._close_feed()

    async def listen(self, on_line: Callable[[bytes], None]) -> str:
        """Hear it until it ends; returns why it did. Cancelled or not, the process is gone afterwards."""
        try:
            await self._read(on_line)
        finally:
            await self.aclose()
        return self._cause or f"it ended with status {self._popen.returncode}"

    async def aclose(self) -> None:
        """End it now and wait until it is gone, also when cancelled meanwhile."""
        self._close_feed()
        self._popen.kill()
        gone = asyncio.ensure_future(self._reap())
        try:
            await asyncio.shield(gone)
        except asyncio.CancelledError:
            await asyncio.wait({gone})
            raise

    async def _reap(self) -> None:
        try:
            if await self.process.wait(deadline=END):
                self._popen.wait()
        finally:
            self.process.close()
            self._events.close()

    def _close_feed(self) -> None:
        if self._feed >= 0:
            os.close(self._feed)
            self._feed = -1

    async def _read(self, on_line: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        bucket = TokenBucket(rate=RATE, burst=RATE, now=loop.time())
        reader, writer = await asyncio.open_unix_connection(sock=self._events, limit=MAX_LINE)
        try:
            while True:
                async with time_limit(SILENCE):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    # Its end: the process ends, too, if it is not about to.
                    if not await self.process.wait(deadline=END):
                        self._cause = "it has closed its socket"
                    return
                while not bucket.take(loop.time(), len(line)):  # noqa: ASYNC110 - it fills with time
                    await asyncio.sleep(0.05)
                on_line(line)
                await asyncio.sleep(0)
        except TimeoutError:
            self._cause = f"it has said nothing for {SILENCE:g} s"
        except (ValueError, ConnectionError, PeerError) as error:
            self._cause = f"what it says cannot be read: {error}"
        finally:
            writer.close()


def _launch(
    arguments: tuple[str, ...], rules: str, *, uid: int, stdin: int, output: int, memory: int
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the launcher; returns its process and our end of its control socket. Raises KernelError."""
    order = msgspec.msgpack.encode(Order(config.files(rules), arguments, uid, memory))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = sealed_memfd("sidestep-ids", order)
    try:
        popen = subprocess.Popen(
            [sys.executable, "-I", "-m", "sidestep.ids.launcher", str(theirs.fileno()), str(fd)],
            stdin=stdin,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(), fd),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise KernelError("fork", error.errno or 0, doing="starting Suricata") from error
    finally:
        theirs.close()
        os.close(fd)
    ours.setblocking(False)
    return popen, ours


def _go_on(control: socket.socket) -> None:
    """Have the launcher execute Suricata; what became of a launcher that is gone is found out elsewhere."""
    with contextlib.suppress(OSError):
        control.send(b"\0")


async def _connected(
    popen: subprocess.Popen[bytes], control: socket.socket, place: Callable[[Process], Awaitable[None]] | None
) -> socket.socket:
    """Wait until Suricata has connected; returns the connection. Raises PeerError."""
    loop = asyncio.get_running_loop()
    process = Process(popen.pid, os.pidfd_open(popen.pid))
    try:
        if place is not None:
            await place(process)
    except BaseException:
        process.close()
        raise
    _go_on(control)
    ended = asyncio.ensure_future(process.wait())
    accepting = asyncio.ensure_future(_accept(control))
    try:
        await asyncio.wait({ended, accepting}, timeout=START, return_when=asyncio.FIRST_COMPLETED)
        if accepting.done():
            return accepting.result()
        if ended.done():
            raise PeerError(f"it ended at its start, with status {await loop.run_in_executor(None, popen.wait)}")
        raise PeerError(f"it did not start within {START:g} s")
    finally:
        for task in (ended, accepting):
            task.cancel()
        await asyncio.gather(ended, accepting, return_exceptions=True)
        process.close()


async def _accept(control: socket.socket) -> socket.socket:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(control, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(control)
    data, fds, _, _ = socket.recv_fds(control, 1, 1)
    if not data or not fds:
        await loop.create_future()  # the launcher has failed: its end tells why
    with socket.socket(fileno=fds[0]) as listener:
        listener.setblocking(False)
        connection, _ = await loop.sock_accept(listener)
        connection.setblocking(False)
        return connection


async def _watch(process: Process) -> tuple[bool, int]:
    """Wait for the end of a test, at most START; whether it ended, and the most bytes that were resident in it.

    The peak is read while the process lives. Its `ru_maxrss` is of no use: it includes the peak of the process that
    forked it (getrusage(2), "inherited across fork" of the address space that execve replaces).
    """
    loop = asyncio.get_running_loop()
    begun, peak = loop.time(), 0
    while loop.time() - begun < START:
        peak = max(peak, _peak(process.pid))
        if await process.wait(deadline=LOOK):
            return True, peak
    return False, peak


def _peak(pid: int) -> int:
    """The most bytes that were resident in a process (VmHWM of proc_pid_status(5)); 0 when it has ended."""
    try:
        found = _HIGH_WATER.search(Path(f"/proc/{pid}/status").read_bytes())
    except OSError:
        return 0
    return 0 if found is None else int(found[1]) * 1024


def _version() -> str:
    program = find_suricata()
    return "" if program is None else _version_of(program, Path(program).stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _version_of(program: str, _modified: int) -> str:
    """What a program says of itself; asked again when the file is another one."""
    try:
        said = subprocess.run([program, "-V"], capture_output=True, check=False, timeout=10, cwd="/", text=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    found = _VERSION.search(said.stdout)
    return "" if found is None else found[1]


def _mebibytes(count: int) -> int:
    return -(-count // (1024 * 1024))


def _read_all(reading: int) -> str:
    """Read a pipe to its end and close it; the first MAX_OUTPUT bytes are returned."""
    kept = b""
    with open(reading, "rb", buffering=0) as output:
        while data := output.read(65536):
            kept = (kept + data)[:MAX_OUTPUT]
    return kept.decode(errors="replace")


def _reason(text: str, status: int) -> str:
    """The first line that tells an error, as text for people."""
    lines = [line.strip() for line in _LINE_END.split(text) if line.strip()]
    errors = [line for line in lines if line.startswith(("E: ", "Error: "))] or lines
    told = _NOISE.sub("", errors[0]) if errors else f"it ended with status {status}"
    return harmless(f"Suricata refuses the rules: {told}", 500)
