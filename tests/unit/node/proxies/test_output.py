"""Lines that a process writes: what of a flood, of long lines and of control characters reaches the log."""

import asyncio
import fcntl
import os
import time

import pytest

from sidestep.node.proxies import output
from sidestep.node.proxies.output import Output


def lines_of(*pieces: bytes, label: str = "") -> list[str]:
    """What is logged of these pieces, each written when there is room, and then the end."""
    lines: list[str] = []

    async def run() -> None:
        reading, writing = output.pipe()
        it = Output(reading, lines.append, label=label)
        for piece in pieces:
            left = memoryview(piece)
            while left:
                try:
                    left = left[os.write(writing, left) :]
                except BlockingIOError:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(0)
        os.close(writing)
        deadline = time.monotonic() + 20
        while it._fd >= 0:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
        it.close()

    asyncio.run(run())
    return lines


def dropped_of(lines: list[str]) -> int:
    """How many lines were dropped, as they say."""
    return sum(int(line.split()[0][1:]) for line in lines if line.endswith("lines were dropped)"))


def test_lines_are_logged_whole_with_their_label():
    assert lines_of(b"one\ntw", b"o\n\nrest", label="shop/a") == [
        "shop/a: one",
        "shop/a: two",
        "shop/a: ",
        "shop/a: rest",
    ]


def test_control_characters_are_neutralised():
    [line] = lines_of("\x1b[2J\r\x07\u202e\u2028\xff é 漢\n".encode() + b"")
    assert line.isprintable()
    assert line.endswith("é 漢")
    assert lines_of(b"\xff\xfe\n") == ["\ufffd\ufffd"]


@pytest.mark.parametrize("line", [b"", b"x", b"x" * 5000])
def test_of_a_flood_some_are_logged_and_all_are_counted(line):
    count = 200_000 // (len(line) + 1)
    began = time.monotonic()
    lines = lines_of((line + b"\n") * count)
    logged = [each for each in lines if "dropped" not in each]
    assert len(logged) <= output.BURST + output.RATE * (time.monotonic() - began + 1)
    assert max(map(len, lines)) <= output.LENGTH + 1
    if len(line) < output.LENGTH:
        assert len(logged) + dropped_of(lines) == count


def test_a_line_without_an_end_is_not_kept():
    lines = lines_of(b"x" * 300_000)
    assert max(map(len, lines)) <= output.LENGTH + 1
    assert len(lines) <= output.BURST


def test_closing_logs_what_is_there():
    lines: list[str] = []

    async def run() -> None:
        reading, writing = output.pipe()
        it = Output(reading, lines.append)
        os.write(writing, b"last words\nand")
        it.close()
        it.close()
        os.close(writing)

    asyncio.run(run())
    assert lines == ["last words", "and"]


def test_all_that_a_large_pipe_holds_is_accounted_for():
    """The pipes of a kernel with pages of 64 KiB hold 1 MiB."""
    lines: list[str] = []

    async def run() -> None:
        reading, writing = output.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
        written = os.write(writing, b"line\n" * 100_000)
        assert written > 400_000
        it = Output(reading, lines.append)
        it.close()
        os.close(writing)
        assert len(lines) - 1 + dropped_of(lines) == written // 5

    asyncio.run(run())
