"""The standard streams of a process as its parent may have left them: closed, or unable to encode.

The entry point uses this before anything else is loaded, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys


def open_standard_streams() -> None:
    """Ensure that descriptors 0 to 2 are open and that all text can be encoded.

    When the parent has closed one of them, the next socket or file would get its number and receive printed text.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - a stream
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence_stdout() -> None:
    """Redirect standard output to /dev/null after its reader has gone, so that the interpreter's last flush
    succeeds.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
