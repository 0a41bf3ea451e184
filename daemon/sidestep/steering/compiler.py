"""Compile the programs of bpf/ in a short-lived child, so that bcc and LLVM never enter the daemon's memory.

The child returns data (`CompilerOutput`). Its size and the time are bounded, and it is compared with steering/layout.py
before use. A child that hangs, writes too much or dies is killed and reported in one line. It ends with the daemon.

The calling thread starts the child (which asks to be killed when that thread ends), and another thread reads its output
with blocking calls: asyncio's subprocesses wait for ever for the end of a pipe that they have stopped reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import subprocess
import sys
import time
from typing import Final

import msgspec

from sidestep.model.errors import BugError, ConfigurationError
from sidestep.steering.egress_layout import EGRESS_SOURCE
from sidestep.steering.layout import LOOKUP_SOURCE, PEER4, PEER6, PEERNAME_SOURCE, PROGRAM, Source
from sidestep.steering.program import CompiledProgram, CompilerOutput, checked

TIMEOUT: Final = 60.0
"""Seconds; a compilation takes 0.6 s on a quiet machine."""

MAX_OUTPUT: Final = 1024 * 1024
"""Bytes accepted from the child; a program is about 2 KiB."""

MAX_DIAGNOSTICS: Final = 64 * 1024
"""Bytes of the compiler's diagnostics that are kept; the rest is read and dropped."""

CHILD: Final = (sys.executable, "-P", "-m", "sidestep.steering.compiler_child")
"""With -P no module is imported from the daemon's working directory."""

_CHUNK: Final = 64 * 1024


async def compile_program(*, deadline: float = TIMEOUT, command: tuple[str, ...] = CHILD) -> CompiledProgram:
    """Compile the sk_lookup program for this machine; see `compile_source`."""
    return (await compile_source(LOOKUP_SOURCE, deadline=deadline, command=command))[PROGRAM]


async def compile_peername() -> tuple[CompiledProgram, CompiledProgram]:
    """Compile the programs for getpeername over IPv4 and IPv6; see `compile_source`."""
    compiled = await compile_source(PEERNAME_SOURCE)
    return compiled[PEER4], compiled[PEER6]


async def compile_egress() -> dict[str, CompiledProgram]:
    """Compile the programs for outbound connections, by name; see `compile_source`."""
    return await compile_source(EGRESS_SOURCE)


async def compile_source(
    source: Source, *, deadline: float = TIMEOUT, command: tuple[str, ...] = CHILD
) -> dict[str, CompiledProgram]:
    """Compile a source for this machine; its functions by name.

    Raises ConfigurationError, one line that says what to install, when bcc or kernel headers are missing or unusable or
    the compiler does not end within `deadline` seconds; BugError when the child breaks its contract.
    """
    process = _start((*command, source.name))
    work = asyncio.get_running_loop().run_in_executor(None, _collect, process, deadline)
    try:
        output, diagnostics = await asyncio.shield(work)
    except asyncio.CancelledError:
        process.kill()
        with contextlib.suppress(BugError, ConfigurationError):
            await work
        raise
    return _result(source, output, diagnostics, process.returncode)


def _start(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the daemon, which ends the child if it has to
        )
    except OSError as error:
        raise ConfigurationError(f"cannot start the compiler: {error.strerror}", subject="steering") from error


def _collect(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Standard output and error until both end; the child is dead and reaped afterwards, whatever happened."""
    if process.stdout is None or process.stderr is None:
        raise BugError("the compiler child has no pipes")
    output, diagnostics = bytearray(), bytearray()
    end = time.monotonic() + deadline
    with process, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output)
        selector.register(process.stderr, selectors.EVENT_READ, diagnostics)
        try:
            while selector.get_map():
                ready = selector.select(max(0.0, end - time.monotonic()))
                if not ready or time.monotonic() > end:
                    raise ConfigurationError(f"the compiler did not end within {deadline:g} s", subject="steering")
                for key, _ in ready:
                    chunk = os.read(key.fd, _CHUNK)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    elif key.data is output:
                        output += chunk
                    else:
                        diagnostics += chunk[: MAX_DIAGNOSTICS - len(diagnostics)]
                if len(output) > MAX_OUTPUT:
                    raise BugError(f"the compiler child printed more than {MAX_OUTPUT} bytes")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        finally:
            process.kill()
    return bytes(output), bytes(diagnostics)


def _result(source: Source, output: bytes, diagnostics: bytes, status: int) -> dict[str, CompiledProgram]:
    text = diagnostics.decode(errors="replace")
    try:
        answer = msgspec.msgpack.decode(output, type=CompilerOutput)
    except msgspec.MsgspecError as error:
        last = next(reversed(text.strip().splitlines()), "no output")[:300]
        raise BugError(f"the compiler child ended with status {status}: {last}") from error
    if answer.error:
        problem = first_problem(text)
        raise ConfigurationError(answer.error + (f": {problem}" if problem else ""), subject="steering")
    return checked(answer, source)


def first_problem(diagnostics: str) -> str:
    """The first error that clang printed, or nothing."""
    return next((line.strip()[:300] for line in diagnostics.splitlines() if "error:" in line), "")
