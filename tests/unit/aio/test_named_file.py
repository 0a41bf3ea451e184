"""Files that people name: whatever a path leads to, the answer comes soon and says what is wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sidestep.aio import named_file
from sidestep.aio.named_file import mode_of, read_named
from sidestep.model.errors import ConfigurationError


def test_a_regular_file_is_read_up_to_the_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_named(link, subject="--file", limit=100) == b"x" * 100
    with pytest.raises(ConfigurationError, match=r"--file '.*file': is larger than"):
        read_named(path, subject="--file", limit=99)


def fifo(folder):
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def bound(folder):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "socket"))
    return folder / "socket"


def loop(folder):
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "is a pipe, not a file"),
        (lambda _: Path("/dev/zero"), "is a device, not a file"),
        (lambda _: Path("/dev/tty"), "is a device, not a file"),
        (bound, "is a socket, not a file"),
        (lambda folder: folder, "is a folder, not a file"),
        (loop, "cannot be read: Too many levels of symbolic links"),
        (lambda folder: folder / "missing", "cannot be read: No such file or directory"),
        (lambda folder: folder / ("x" * 300), "cannot be read: File name too long"),
        (lambda folder: folder / "a\0b", "is no path"),
        (lambda _: Path("/proc/self/mem"), "cannot be read: "),
    ],
)
def test_anything_else_is_an_error(tmp_path, make, reason):
    with pytest.raises(ConfigurationError) as caught:
        read_named(make(tmp_path), subject="--file")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("--file ")


def test_a_file_that_has_nothing_to_read_yet_is_an_error(tmp_path, monkeypatch):
    # Some regular files of /proc wait for what happens next; a socket stands in for one, which only root may read.
    path = tmp_path / "file"
    path.touch()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        monkeypatch.setattr(os, "open", lambda *_: os.dup(ours.fileno()))
        monkeypatch.setattr(named_file, "other_kind", lambda _: "")
        with pytest.raises(ConfigurationError, match="has no content now"):
            read_named(path, subject="--file")


def test_a_path_that_cannot_be_looked_at_is_not_there(tmp_path):
    (tmp_path / "file").touch()
    for name in ("x" * 300, "missing", "file/below", "a\0b", "x/" * 5000):
        assert mode_of(tmp_path / name) == 0
    assert mode_of(tmp_path / "file")
