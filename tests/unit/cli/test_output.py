import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.aio.time_limit import time_limit
from sidestep.cli.output import AT_ONCE, QUEUE, ROOM, LineWriter, json_line
from sidestep.cli.table import table
from sidestep.model.text import harmless
from tests.harness.waiting import until

FULL = """
import sys
from sidestep.cli.output import LineWriter
writer = LineWriter(sys.stdout.fileno(), on_closed=lambda: None)
for _ in range(5000):
    writer.line("x" * 1000)
writer.close()
"""


@given(st.text())
def test_nothing_reaches_the_terminal_but_printable_text(text):
    assert harmless(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü", "plain ü"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\r\nb", "a\\r\\nb"),
        ("\u202eevil", "\\u202eevil"),
        ("\x9b", "\\x9b"),
        ("\udc80", "\\udc80"),
    ],
)
def test_control_characters_are_shown_not_sent(text, shown):
    assert harmless(text) == shown


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_json_lines_are_printable_and_mean_the_same(text):
    line = json_line({"text": text})
    assert line.isprintable()
    assert json.loads(line) == {"text": text}


@pytest.mark.parametrize("text", ["a\x1b]0;title\x07b", "a\x9b31mb", "\x7f", "\u202eevil", "\U000e0001", "a\u2028b"])
def test_no_escape_sequence_reaches_a_terminal_in_json(text):
    assert not {character for character in json_line([text]) if not character.isprintable()}


def test_long_text_is_cut():
    assert len(harmless("x" * 10_000)) == 2049


@contextlib.contextmanager
def pipe():
    """(reader, descriptor to write to). The test closes the reader itself where that is its point."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
        yield reader, writer.fileno()


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_are_written_in_order(blocking):
    with pipe() as (reader, descriptor):
        os.set_blocking(descriptor, blocking)
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
        writer = LineWriter(descriptor, on_closed=lambda: None)
        for number in range(2000):
            writer.line(str(number))
        assert [int(reader.readline()) for _ in range(2000)] == list(range(2000))
        writer.close()
        assert writer.dropped == 0


def test_what_the_encoding_lacks_is_escaped():
    with pipe() as (reader, descriptor):
        writer = LineWriter(descriptor, on_closed=lambda: None, encoding="ascii")
        writer.line("ü")
        assert reader.readline() == b"\\xfc\n"
        writer.close()


def test_a_reader_that_does_not_read_costs_lines_not_time():
    with pipe() as (reader, descriptor):
        writer = LineWriter(descriptor, on_closed=lambda: None)
        for _ in range(QUEUE + 1000):
            writer.line("x" * 100)
        assert writer.dropped > 0
        began = time.monotonic()
        writer.close()
        assert time.monotonic() - began < 10
        assert reader.read(4096)  # its thread ends with the pipe


@pytest.mark.parametrize("options", [["-u"], []])
def test_an_interpreter_ends_although_nobody_reads(options):
    """Python's streams, buffered or not, are flushed at the end, and that must not wait for a thread that waits."""
    command = [sys.executable, *options, "-c", FULL]
    with pipe() as (_, descriptor):
        done = subprocess.run(command, stdout=descriptor, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_has_gone_is_told_of():
    closed = []
    with pipe() as (reader, descriptor):
        reader.close()
        writer = LineWriter(descriptor, on_closed=lambda: closed.append(True))
        writer.line("x")
        until(lambda: closed, within=5, what="the end of the reader")
        writer.close()


def test_a_table_aligns_and_shows_what_is_empty():
    assert table(("NAME", "X"), [("a", "1"), ("long name", ""), ("b\n", "2")]) == [
        "NAME       X",
        "a          1",
        "long name  -",
        "b\\n        2",
    ]


def waiting_for_room(writer, act):
    """How many of three tasks got room before `act`; all of them must after it. All lines were queued that there is
    room for."""

    async def scene():
        tasks = [asyncio.create_task(writer.room()) for _ in range(3)]
        await asyncio.sleep(0.1)
        before = sum(task.done() for task in tasks)
        act()
        async with time_limit(20):
            await asyncio.gather(*tasks)
        return before

    return asyncio.run(scene())


def test_who_prints_much_waits_for_room():
    with pipe() as (reader, descriptor):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
        writer = LineWriter(descriptor, on_closed=lambda: None)
        assert waiting_for_room(writer, lambda: None) == 3
        for _ in range(ROOM + 2 * AT_ONCE):
            writer.line("x" * 200)
        assert waiting_for_room(writer, lambda: [reader.readline() for _ in range(3 * AT_ONCE)]) == 0
        assert writer.dropped == 0


def test_nobody_waits_for_room_once_nobody_reads():
    with pipe() as (reader, descriptor):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
        closed = threading.Event()
        writer = LineWriter(descriptor, on_closed=closed.set)
        for _ in range(ROOM + 2 * AT_ONCE):
            writer.line("x" * 200)
        assert waiting_for_room(writer, reader.close) == 0
        assert closed.wait(20)
