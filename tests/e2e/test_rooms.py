"""Rooms: what is written in one is gone with it, and so is every process and mount."""

import subprocess

import pytest

from tests.debian import roots
from tests.debian.room import READY, Bind, Room
from tests.harness.processes import Process, alive, children
from tests.harness.waiting import until


@pytest.fixture(scope="module")
def root():
    return roots.root("base", "bookworm")


def run(room, script):
    return subprocess.run(room.run("sh", "-euc", script), capture_output=True, text=True, check=False, timeout=60)


def test_the_root_stays_as_it_was(root):
    done = run(Room(root), "touch /left; rm /etc/passwd; test -e /left; cat /etc/os-release")
    assert done.returncode == 0, done.stderr
    assert "VERSION_CODENAME=bookworm" in done.stdout
    assert not (root / "left").exists()
    assert (root / "etc/passwd").exists()
    assert list((root.parent / "stage").iterdir()) == []


def test_writes_may_land_in_a_folder(root, tmp_path):
    assert run(Room(root, writes=tmp_path), "echo here >/left").returncode == 0
    assert (tmp_path / "upper" / "left").read_text() == "here\n"


def test_the_exit_status_is_the_commands(root):
    assert run(Room(root), "exit 7").returncode == 7


def test_a_command_that_is_not_there(root):
    done = subprocess.run(Room(root).run("no-such-program"), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 127
    assert "no-such-program" in done.stderr


def test_folders_of_the_machine(root, tmp_path):
    (tmp_path / "said").write_text("outside\n")
    room = Room(root, binds=[Bind(tmp_path, "/some/where"), Bind(tmp_path, "/read", read_only=True)])
    done = run(room, "cat /some/where/said; echo back >/some/where/heard; ! touch /read/more 2>/dev/null")
    assert (done.returncode, done.stdout) == (0, "outside\n"), done.stderr
    assert (tmp_path / "heard").read_text() == "back\n"


def test_namespaces_of_its_own(root):
    room = Room(root, own=["net", "uts", "ipc", "cgroup"], hostname="elsewhere")
    done = run(room, "cat /proc/sys/kernel/hostname; ls /sys/class/net; test -d /sys/fs/cgroup; echo $$")
    assert done.stdout.split() == ["elsewhere", "lo", "2"], done.stderr


def test_a_room_that_stays_is_joined_and_ends_with_process_1(root, tmp_path):
    room = Room(root, own=["uts"], hostname="stays")
    with Process(room.stay(), log=tmp_path / "log") as process:
        until(lambda: READY in process.text().splitlines(), within=30, what=process.text)
        [first] = children(process.pid)
        with Process(room.join(first, "sleep", "600"), log=tmp_path / "joined") as joined:
            [sleeping] = until(lambda: children(joined.pid), within=10, what="the command")
            process.kill()
            until(lambda: not alive(sleeping), within=10, what="the command to end with the room")
        until(lambda: not alive(first), within=10, what="process 1 to end")
