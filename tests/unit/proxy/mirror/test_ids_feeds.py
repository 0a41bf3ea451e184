"""The pipes to an IDS: whole packets or none, no waiting, one reader after the other."""

import contextlib
import fcntl
import os

import pytest

from sidestep.proxy.mirror import ids_feeds
from sidestep.proxy.mirror.ids_feeds import END, MADE, WAITING, IdsFeeds, IdsPipe
from tests.unit.proxy.looping import Stepped, run_until

RECORD = 16
"""Bytes before a packet."""


@pytest.fixture
def stepped():
    made = Stepped()
    yield made
    made.loop.close()
    assert made.crashes == []


@pytest.fixture
def spent():
    """Processor seconds that were told."""
    return []


@pytest.fixture
def ends():
    """A pipe of one page: the reading end, and the writing end, which somebody else owns."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    os.close(reading)


def read(fd):
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def packets(data):
    """The packets of a stream, which has to be whole."""
    found = []
    while data:
        size = int.from_bytes(data[8:12], "little")
        found.append(data[RECORD : RECORD + size])
        assert len(found[-1]) == size
        data = data[RECORD + size :]
    return found


def test_packets_come_whole_and_in_order_however_slow_the_reader(stepped, ends, spent):
    pipe = IdsPipe(stepped.loop, ends[1], spent.append)
    sent = [bytes([number]) * 3000 for number in range(60)]
    assert all(pipe.write(packet) for packet in sent)
    got = []

    def look():
        got.append(read(ends[0])[:100_000])
        return len(b"".join(got)) >= 60 * (3000 + RECORD)

    run_until(stepped.loop, look)
    assert packets(b"".join(got)) == sent
    pipe.close()


def test_what_finds_no_room_is_left_out_whole_and_ends_find_some(stepped, ends, spent):
    pipe = IdsPipe(stepped.loop, ends[1], spent.append)
    half = b"a" * (WAITING // 2 + 8192)
    assert pipe.write(half)
    assert not pipe.write(b"b" * 100, half)
    assert pipe.write(b"c")
    assert not pipe.write(half)
    assert pipe.write(b"d" * (END // 2), ends=True)
    assert not pipe.write(b"e" * WAITING, ends=True)
    got = []

    def look():
        got.append(read(ends[0]))
        return len(b"".join(got)) >= len(half) + 1 + END // 2 + 3 * RECORD

    run_until(stepped.loop, look)
    assert [each[:1] for each in packets(b"".join(got))] == [b"a", b"c", b"d"]
    pipe.close()


def test_room_is_made_where_the_pipe_has_some(stepped, spent):
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    pipe = IdsPipe(stepped.loop, writing, spent.append)
    data = bytes(WAITING // 4)
    assert all(pipe.write(b"%d" % number, data) for number in range(12))
    pipe.flush()
    assert [each[: -len(data)] for each in packets(read(reading))] == [b"%d" % number for number in range(12)]
    pipe.close()
    os.close(reading)


def test_many_packets_are_one_write_and_what_they_took_is_told(stepped, spent, monkeypatch):
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pipe, writes, write = IdsPipe(stepped.loop, writing, spent.append), [], os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(len(data)) or write(fd, data))
    for number in range(50):
        assert pipe.write(b"head", b"%02d" % number)
    assert read(reading) == b""
    run_until(stepped.loop, lambda: writes)
    assert packets(read(reading)) == [b"head%02d" % number for number in range(50)]
    assert len(writes) == len(spent) == 1
    assert spent[0] > 50 * MADE
    pipe.close()
    os.close(reading)


def test_times_never_run_backwards(stepped, ends, monkeypatch, spent):
    times = iter([5_000_000_000, 3_000_000_000, 7_000_000_000])
    monkeypatch.setattr(ids_feeds, "time_ns", lambda: next(times))
    pipe = IdsPipe(stepped.loop, ends[1], spent.append)
    for packet in (b"a", b"b", b"c"):
        pipe.write(packet)
    pipe._flush()
    data = read(ends[0])
    assert [int.from_bytes(data[at : at + 4], "little") for at in (0, 17, 34)] == [5, 5, 7]
    pipe.close()


def test_a_reader_that_goes_ends_it(stepped, spent):
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    feeds = IdsFeeds(stepped.loop, spent.append)
    feeds.replace(writing)
    pipe = feeds.current
    os.close(reading)
    run_until(stepped.loop, lambda: pipe.is_over)
    assert feeds.current is None
    assert not pipe.write(b"a")


def test_a_newer_one_takes_new_connections_and_the_older_ends_with_its_last(stepped, ends, spent):
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    feeds, connection = IdsFeeds(stepped.loop, spent.append), object()
    feeds.replace(ends[1])
    older = feeds.current
    older.enter(connection)
    feeds.replace(writing)
    assert feeds.current is not older
    assert older.write(b"goes on")
    got = []

    def look():
        got.extend(packets(read(ends[0])))
        return got == [b"goes on"]

    run_until(stepped.loop, look)
    older.leave(connection)
    run_until(stepped.loop, lambda: older.is_over)
    assert not feeds.current.is_over
    feeds.current.close()
    os.close(reading)


def test_one_without_connections_ends_at_once_and_one_with_them_after_a_time(stepped, ends, monkeypatch, spent):
    monkeypatch.setattr(ids_feeds, "RETIRED", 0.05)
    feeds = IdsFeeds(stepped.loop, spent.append)
    readers = [ends[0]]
    feeds.replace(ends[1])
    for is_used in (False, True):
        older = feeds.current
        if is_used:
            older.enter(object())
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        readers.append(reading)
        feeds.replace(writing)
        run_until(stepped.loop, lambda older=older: older.is_over)
    feeds.current.close()
    for reading in readers[1:]:
        os.close(reading)


def test_a_retired_pipe_has_all_that_was_fed_to_it_before_it_ends(stepped, ends, spent):
    """The reader is slow: the pipe has a page, and what waits is more."""
    feeds = IdsFeeds(stepped.loop, spent.append)
    feeds.replace(ends[1])
    sent = [bytes([number]) * 3000 for number in range(20)]
    assert all(feeds.current.write(packet) for packet in sent)
    other, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    feeds.replace(writing)
    got = []

    def look():
        with contextlib.suppress(BlockingIOError):
            got.append(os.read(ends[0], 4096))
        return got and not got[-1]

    run_until(stepped.loop, look)
    assert packets(b"".join(got)) == sent
    feeds.current.close()
    os.close(other)


def test_a_retired_pipe_that_nobody_reads_ends_all_the_same(stepped, ends, spent, monkeypatch):
    monkeypatch.setattr(ids_feeds, "LAST", 0.05)
    pipe = IdsPipe(stepped.loop, ends[1], spent.append)
    assert pipe.write(bytes(WAITING // 2))
    pipe.retire()
    run_until(stepped.loop, lambda: pipe.is_over)


def test_what_waits_for_a_retired_pipe_is_written_before_the_process_ends(stepped, ends, spent):
    feeds = IdsFeeds(stepped.loop, spent.append)
    feeds.replace(ends[1])
    first = feeds.current
    first.enter(feeds)
    other, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    feeds.replace(writing)
    assert first.write(b"of a connection that it has been fed from the beginning")
    assert feeds.current.write(b"of another")
    feeds.flush()
    assert packets(read(ends[0])) == [b"of a connection that it has been fed from the beginning"]
    assert packets(read(other)) == [b"of another"]
    first.close()
    feeds.current.close()
    os.close(other)
