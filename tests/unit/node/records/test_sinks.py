"""Files, sockets and pipes to which lines are written: what is there afterwards, and what is told when it fails."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from sidestep.node.records import sinks
from sidestep.node.records.sinks import DescriptorSink, FileSink, SocketSink
from tests.harness.waiting import until


def lines(count, start=0, size=100):
    return [f"{number:06}".encode().ljust(size - 1, b".") + b"\n" for number in range(start, start + count)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sinks, "PAUSE", 0.05)
    monkeypatch.setattr(sinks, "LOOK", 0.0)


def read(path):
    return path.read_bytes().splitlines(keepends=True)


def test_a_file_and_its_folder_are_made_for_their_owner_only_and_appended_to(tmp_path):
    path = tmp_path / "log" / "sidestep" / "eve.json"
    sink = FileSink(path)
    assert not path.parent.exists()
    assert sink.write(lines(3)) == 3
    sink.close()
    again = FileSink(path)
    assert again.write(lines(2, 3)) == 2
    again.close()
    assert read(path) == lines(5)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_files_are_rotated_and_bounded_together(tmp_path):
    path = tmp_path / "eve.json"
    sink = FileSink(path, size=1000, files=3)
    for start in range(0, 95, 5):
        assert sink.write(lines(5, start)) == 5
    sink.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["eve.json", "eve.json.1", "eve.json.2"]
    assert read(tmp_path / "eve.json.2") + read(tmp_path / "eve.json.1") + read(path) == lines(25, 70)
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())


@pytest.mark.parametrize("files", [1, 2])
def test_a_batch_larger_than_a_file_is_divided(tmp_path, files):
    path = tmp_path / "eve.json"
    sink = FileSink(path, size=300, files=files)
    assert sink.write(lines(8)) == 8
    assert read(path) == lines(2, 6)
    assert sink.write(lines(1, 8, size=5000)) == 1
    assert read(path) == lines(1, 8, size=5000)


@pytest.mark.parametrize("how", ["removed", "renamed", "folder"])
def test_a_file_that_somebody_takes_away_is_made_again(tmp_path, how):
    path = tmp_path / "log" / "eve.json"
    sink = FileSink(path)
    assert sink.write(lines(1)) == 1
    if how == "renamed":
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    if how == "folder":
        path.parent.rmdir()
    assert sink.write(lines(1, 1)) == 1
    assert read(path) == lines(1, 1)


@pytest.mark.parametrize("what", ["fifo", "link", "folder", "dangling", "no folder"])
def test_what_is_no_file_is_not_written_to_and_nobody_waits(tmp_path, what):
    path = tmp_path / "eve.json"
    target = tmp_path / "target"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        target.write_bytes(b"")
        path.symlink_to(target)
    elif what == "dangling":
        path.symlink_to(target)
    elif what == "folder":
        path.mkdir()
    else:
        (tmp_path / "file").write_bytes(b"")
        path = tmp_path / "file" / "eve.json"
    sink = FileSink(path)
    assert sink.write(lines(3)) == 0
    assert sink.problem
    assert not (target.exists() and target.stat().st_size)
    if what == "fifo":
        path.unlink()
        time.sleep(sinks.PAUSE)
        assert sink.write(lines(3)) == 3
        assert sink.problem == ""


def test_after_a_failure_nothing_is_tried_for_a_while(tmp_path):
    sink = SocketSink(tmp_path / "eve.sock")
    assert sink.write(lines(1)) == 0
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "eve.sock"))
        server.listen()
        assert sink.write(lines(1)) == 0
        until(lambda: sink.write(lines(1)) == 1, within=5, what="the next try")
        assert sink.problem == ""
        with server.accept()[0] as reader:
            sink.close()
            assert reader.recv(1000) == lines(1)[0]


def test_a_reader_that_does_not_read_gets_whole_lines_until_its_connection_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "STALL", 0.2)
    path = tmp_path / "eve.sock"
    sink = SocketSink(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        sent = lines(1000, size=1000)
        written = sink.write(sent)
        assert 0 < written < 1000
        assert sink.problem == "the reader does not read"
        got = b""
        with server.accept()[0] as reader:
            while data := reader.recv(1 << 20):
                got += data
        assert got.startswith(b"".join(sent[:written]))
        assert b"".join(sent[: written + 1]).startswith(got)
        until(lambda: sink.write(lines(1)) == 1, within=5, what="another connection")
        sink.close()
        with server.accept()[0] as reader:
            assert reader.recv(1000) == lines(1)[0]


@pytest.mark.parametrize("blocks", [True, False])
def test_a_pipe_that_is_full_holds_up_the_thread_and_loses_nothing(blocks):
    reading, writing = os.pipe()
    os.set_blocking(writing, blocks)
    sink = DescriptorSink(writing)
    sent = lines(200, size=1000)
    done = []
    thread = threading.Thread(target=lambda: done.append(sink.write(sent)), daemon=True)
    thread.start()
    until(lambda: _is_full(writing), within=5, what="a full pipe")
    assert not done
    got = b""
    while len(got) < 200_000:
        got += os.read(reading, 1 << 16)
    thread.join(5)
    assert done == [200]
    assert got == b"".join(sent)
    os.close(reading)
    assert sink.write(lines(1)) == 0
    assert sink.problem == "Broken pipe"
    os.close(writing)


def _is_full(fd):
    import select

    return not select.select([], [fd], [], 0)[1]


def test_every_path_is_where_the_documents_say():
    from sidestep.node.records import eve_log

    assert Path("/var/log/sidestep/eve.json") == eve_log.FILE
    assert Path("/run/sidestep/eve.sock") == eve_log.SOCKET
    assert sinks.FILES * sinks.FILE_SIZE == 128 << 20
