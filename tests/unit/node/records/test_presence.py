"""What a daemon leaves for the next one: when it was last there, and what it inspected."""

import fcntl
import os
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.pod import Pod, PodKey
from sidestep.node.records import presence
from sidestep.node.records.presence import Inspected, Presence, absence
from tests.harness.processes import child
from tests.harness.waiting import until

ORDERS = Inspected("shop", "orders-1", "u1", (8080, 8443))
CARTS = Inspected("shop", "carts-1", "u2", (80,))
KEY = PodKey("shop", "orders-1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "inspected.json"


@pytest.fixture
def kept(path):
    """A daemon that is there."""
    made = Presence(path)
    yield made
    made.finish()


def left(path, *pods):
    """The file of a daemon that was ended."""
    made = Presence(path)
    made.keep(pods)
    until(path.exists, within=5, what="the file")
    made.finish()
    return path


def age(path, seconds):
    at = time.time() - seconds
    os.utime(path, (at, at))


def pod(uid="u1"):
    return Pod(key=KEY, uid=uid)


def test_the_next_daemon_learns_when_and_what(path):
    age(left(path, ORDERS, CARTS), 30)
    found = absence(path)
    assert 29 < found.seconds < 60
    assert found.take(pod(), [8443, 9000]) == (8443,)
    assert found.take(pod(), [8443]) == ()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_another_pod_of_the_name_was_not_inspected(path):
    found = absence(left(path, ORDERS))
    assert found.take(pod("another"), [8443]) == ()


def test_a_policy_that_comes_later_is_another_one(path, monkeypatch):
    found = absence(left(path, ORDERS))
    monkeypatch.setattr(presence, "VALID", -1.0)
    assert found.take(pod(), [8443]) == ()


def test_while_a_daemon_is_there_nobody_was_absent(path, kept):
    kept.keep((ORDERS,))
    until(path.exists, within=5, what="the file")
    age(path, 100)
    assert absence(path) is None
    until(lambda: time.time() - path.stat().st_mtime < 50, within=5, what="the time to be kept")


def test_the_lock_goes_with_a_process_that_is_killed(path):
    script = (
        "import sys, time; from pathlib import Path; from sidestep.node.records.presence import *;"
        "Presence(Path(sys.argv[1])).keep((Inspected('shop', 'orders-1', 'u1', (80,)),)); time.sleep(60)"
    )
    with child([sys.executable, "-c", script, str(path)]) as process:
        until(path.exists, within=20, what="the file")
        assert absence(path) is None
        process.kill()
    assert absence(path).take(pod(), [80]) == (80,)


def test_the_file_of_a_daemon_that_lives_stays_until_it_has_ended(path, kept):
    kept.keep((ORDERS,))
    until(path.exists, within=5, what="the file")
    successor = Presence(path)
    successor.keep((CARTS,))
    time.sleep(1.5 * presence.BEAT)  # a beat of both
    assert b"carts" not in path.read_bytes()
    kept.finish()
    until(lambda: b"carts" in path.read_bytes(), within=5, what="the file of the other one")
    kept.finish()
    assert absence(path) is None
    successor.finish()
    assert absence(path).pods == {PodKey("shop", "carts-1"): CARTS}


def test_nothing_is_kept_where_nothing_is_inspected(path, kept):
    kept.keep(())
    assert not path.parent.exists()
    kept.keep((ORDERS,))
    until(path.exists, within=5, what="the file")
    kept.keep(())
    until(lambda: not path.exists(), within=5, what="the file to go")


def test_a_change_is_written_and_a_file_that_was_removed_made_anew(path, kept):
    kept.keep((ORDERS,))
    until(path.exists, within=5, what="the file")
    kept.keep((CARTS,))
    until(lambda: b"carts" in path.read_bytes(), within=5, what="the change")
    path.unlink()
    until(path.exists, within=5, what="the file")
    assert absence(path) is None


def test_a_folder_that_cannot_be_written_holds_nobody_up(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    made = Presence(tmp_path / "file" / "inspected.json")
    made.keep((ORDERS,))
    began = time.monotonic()
    made.finish()
    assert time.monotonic() - began < 5
    assert absence(tmp_path / "file" / "inspected.json") is None


def link(path):
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)


def fifo(path):
    path.unlink()
    os.mkfifo(path)


FORGED = {
    "a link": link,
    "a FIFO": fifo,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "others can write it": lambda path: path.chmod(0o622),
    "another user's": lambda path: os.chown(path, 65534, 65534),
    "too large": lambda path: path.write_bytes(b" " * (presence.MAX_SIZE + 1) + path.read_bytes()),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "other types": lambda path: path.write_bytes(b'[{"namespace":1,"name":"a","uid":"u","ports":[1]}]'),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_what_is_no_file_of_a_daemon_is_not_believed(path, forge):
    forge(left(path, ORDERS))
    assert absence(path) is None


@given(st.binary(max_size=300))
def test_any_content_is_refused_or_of_the_right_types(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "inspected.json"
    path.write_bytes(content)
    path.chmod(0o600)
    found = absence(path)
    assert found is None or found.take(pod(), [80]) == ()


@pytest.mark.parametrize("at", [0.0, -1e9, 4e9])
def test_a_time_that_cannot_be_is_bounded_by_the_machines_start_and_by_now(path, at):
    os.utime(left(path, ORDERS), (at, at))
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 <= absence(path).seconds <= up + 1


def test_a_lock_that_somebody_else_holds_is_only_that_of_the_file(path):
    left(path, ORDERS)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert absence(path) is None
    assert absence(path) is not None
