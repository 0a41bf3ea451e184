"""Compile bpf/sidestep_lookup.c in a short-lived child, so that bcc and LLVM never enter the daemon's memory.

What comes back is data (`CompilerOutput`), bounded in size and time and compared with steering/layout.py before anyone
uses it. A child that hangs, talks too much or dies is killed and reported in one line; it dies with the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Final

import msgspec

from sidestep.model.errors import BugError, ConfigurationError
from sidestep.steering.program import CompiledProgram, CompilerOutput, checked

TIMEOUT: Final = 60.0
"""Seconds; a compilation takes 0.6 s on a quiet machine."""

MAX_OUTPUT: Final = 1024 * 1024
"""Bytes accepted from the child; a program is about 2 KiB."""

MAX_DIAGNOSTICS: Final = 64 * 1024
"""Bytes of the compiler's diagnostics that are kept; the rest is read and dropped."""

CHILD: Final = (sys.executable, "-m", "sidestep.steering.compiler_child")

_CHUNK: Final = 64 * 1024


async def compile_program(*, timeout: float = TIMEOUT, command: tuple[str, ...] = CHILD) -> CompiledProgram:  # noqa: ASYNC109 - it bounds the child, not the caller
    """Compile the program for this machine.

    Raises ConfigurationError, one line that says what to install, when bcc or kernel headers are missing or unusable or
    the compiler does not end within `timeout` seconds; BugError when the child breaks its contract.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_CHUNK,
        )
    except OSError as error:
        raise ConfigurationError(f"cannot start the compiler: {error.strerror}", subject="steering") from error
    if process.stdout is None or process.stderr is None:
        raise BugError("the compiler child has no pipes")
    try:
        async with asyncio.timeout(timeout):
            output, diagnostics, status = await asyncio.gather(
                _read(process.stdout, MAX_OUTPUT, fatal=True),
                _read(process.stderr, MAX_DIAGNOSTICS, fatal=False),
                process.wait(),
            )
    except TimeoutError as error:
        raise ConfigurationError(f"the compiler did not end within {timeout:g} s", subject="steering") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return _result(output, diagnostics, status)


async def _read(stream: asyncio.StreamReader, limit: int, *, fatal: bool) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(_CHUNK):
        kept += chunk[: max(0, limit - len(kept) + 1)]
        if fatal and len(kept) > limit:
            raise BugError(f"the compiler child printed more than {limit} bytes")
    return bytes(kept[:limit])


def _result(output: bytes, diagnostics: bytes, status: int) -> CompiledProgram:
    try:
        answer = msgspec.msgpack.decode(output, type=CompilerOutput)
    except msgspec.MsgspecError as error:
        lines = diagnostics.decode(errors="replace").strip().splitlines()
        raise BugError(
            f"the compiler child ended with status {status}: {lines[-1] if lines else 'no output'}"
        ) from error
    if answer.error:
        problem = first_problem(diagnostics.decode(errors="replace"))
        raise ConfigurationError(answer.error + (f": {problem}" if problem else ""), subject="steering")
    return checked(answer)


def first_problem(diagnostics: str) -> str:
    """The first error that clang printed, or nothing."""
    return next((line.strip()[:300] for line in diagnostics.splitlines() if "error:" in line), "")
