"""A page in which one process counts: seen by the other, and no danger to it."""

import contextlib
import os

import pytest

from sidestep.aio.pulse import Pulse, Watched
from sidestep.model.errors import PeerError


@pytest.fixture
def watched():
    with contextlib.closing(Watched()) as watched:
        yield watched


def test_each_beat_is_seen_once(watched):
    pulse = Pulse(os.dup(watched.fd))
    assert not watched.beats()
    for _ in range(3):
        pulse.beat()
        pulse.beat()
        assert watched.beats()
        assert not watched.beats()


def test_another_process_is_seen(watched):
    child = os.fork()
    if child == 0:
        Pulse(os.dup(watched.fd)).beat()
        os._exit(0)
    os.waitpid(child, 0)
    assert watched.beats()


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_who_has_the_page_cannot_cut_it_off_under_the_watcher(watched, size):
    with pytest.raises(PermissionError):
        os.ftruncate(watched.fd, size)
    assert not watched.beats()


def test_what_is_no_page_is_refused_and_closed():
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(PeerError):
        Pulse(read)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(read)


def test_nothing_is_left(watched):
    before = os.listdir("/proc/self/fd")
    Watched().close()
    assert os.listdir("/proc/self/fd") == before
