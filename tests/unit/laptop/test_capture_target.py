"""Where a capture is written: a new file of its owner's only, once it begins; nothing that is no file."""

import os
import stat

import pytest

from sidestep.laptop.capture_target import CaptureTarget
from sidestep.model.errors import ConfigurationError, RefusedError


def target(path):
    return CaptureTarget(path, standard_output=1)


def written(place):
    descriptor = place.open()
    os.write(descriptor, b"new")
    os.close(descriptor)


def test_nothing_is_made_before_it_is_opened(tmp_path):
    path = tmp_path / "a.pcapng"
    place = target(path)
    place.check()
    assert [*tmp_path.iterdir()] == []
    written(place)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_that_exists_is_replaced_and_who_has_it_open_sees_nothing(tmp_path):
    path, other = tmp_path / "a.pcapng", tmp_path / "another-name"
    path.write_bytes(b"old")
    path.chmod(0o644)
    other.hardlink_to(path)
    with path.open("rb") as reader:
        place = target(path)
        place.check()
        assert path.read_bytes() == b"old"
        written(place)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert other.read_bytes() == b"old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path, elsewhere = tmp_path / "a.pcapng", tmp_path / "elsewhere"
    if kind == "link":
        elsewhere.write_bytes(b"old")
    if kind in {"link", "dangling"}:
        path.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    for step in (target(path).check, target(path).open):
        with pytest.raises(ConfigurationError, match="not a file; -w - writes to standard output"):
            step()
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"old"


def test_what_became_a_link_meanwhile_is_refused(tmp_path):
    path = tmp_path / "a.pcapng"
    place = target(path)
    place.check()
    path.symlink_to("/etc/passwd")
    with pytest.raises(ConfigurationError, match="is a link"):
        place.open()


@pytest.mark.parametrize(
    ("path", "told"),
    [("absent/a.pcapng", "does not exist"), ("file/a.pcapng", "is none"), ("x" * 300, "file name too long")],
)
def test_a_folder_that_cannot_be_used_is_told_before_the_session_begins(tmp_path, path, told):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=told) as refused:
        target(tmp_path / path).check()
    assert "--write" in str(refused.value)


def test_a_terminal_is_refused_and_a_pipe_is_not(tmp_path):
    reader, writer = os.pipe()
    leader, terminal = os.openpty()
    try:
        with pytest.raises(RefusedError, match="terminal"):
            CaptureTarget("-", standard_output=terminal).check()
        place = CaptureTarget("-", standard_output=writer)
        place.check()
        written(place)
        assert os.read(reader, 10) == b"new"
    finally:
        for each in (reader, writer, leader, terminal):
            os.close(each)
