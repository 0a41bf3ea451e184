"""Snapshots of files, sent by a one-shot child of the reader: of hostile trees, and as the user of a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.node.certificates import reader as reader_module
from sidestep.node.certificates.reader import ReadError
from sidestep.node.certificates.requests import FilesRequest
from sidestep.node.certificates.snapshot import MAX_DEPTH
from sidestep.protocols.file_frames import MAX_ENTRIES, Entry, Frames, Problem, Summary, Whole
from tests.harness.hanging import hanging
from tests.harness.namespaces import run
from tests.harness.processes import alive, child, children, started
from tests.harness.waiting import until
from tests.privileged.node.test_key_reader import described, using

pytestmark = [pytest.mark.privileged, pytest.mark.long]

PATIENCE = 240.0
"""Seconds for a snapshot: its child gives way to everything else on the machine."""

MIB = 1024 * 1024
NOBODY = 65534


class Seen:
    """What came: files with their content, folders, links with their targets, problems with their reasons, and which
    of these are paths that somebody asked for."""

    def __init__(self):
        self.files, self.folders, self.links, self.problems = {}, [], {}, {}
        self.missing = set()
        self.summary = None
        self._frames = Frames()
        self._file = None

    def feed(self, data):
        for frame in self._frames.feed(data):
            assert self.summary is None
            match frame:
                case Entry(kind="folder"):
                    self.folders.append(frame.path)
                case Entry(kind="link"):
                    self.links[frame.path] = frame.target
                case Entry():
                    self._file = frame.path, bytearray()
                case bytes():
                    self._file[1].extend(frame)
                case Whole():
                    self.files[self._file[0]] = bytes(self._file[1])
                case Problem():
                    self.problems[frame.path] = frame.reason
                    if frame.asked:
                        self.missing.add(frame.path)
                case Summary():
                    self.summary = frame


async def received(sock, seen, *, at_first=lambda: None):
    """Read to the end."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    async with time_limit(PATIENCE):
        while data := await loop.sock_recv(sock, 65536):
            at_first()
            seen.feed(data)


def snapshot(*paths, root=None, pid=None, max_bytes=64 * MIB, at_first=lambda: None):
    """The snapshot of a folder, or of a process's root; at the end nothing of it is left."""
    seen = Seen()

    async def work(reader):
        birth = started(pid) if pid is not None else None
        sock = await reader.files(FilesRequest(pid, birth, str(root or ""), paths, max_bytes))
        with sock:
            await received(sock, seen, at_first=at_first)
        until(sock.over, within=20, what="the child to end")

    using(work)
    return seen


MAIN = """
import contextlib, ctypes, os, sys
root, user, bare = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "bare"
os.chroot(root)
os.chdir("/")
with contextlib.suppress(PermissionError):  # in a user namespace
    os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)
if bare and ctypes.CDLL(None).capset(bytes.fromhex("2205082000000000"), bytes(24)) != 0:
    sys.exit("capset")
print("runs", flush=True)
sys.stdin.read()
"""
"""Main process of a container; `capset(2)` takes its capabilities."""


@contextlib.contextmanager
def container(root, *, user=0, bare=False, mounts=(), userns=False):
    """A process whose root is a folder, in a mount namespace of its own."""
    script = "\n".join((*(f"mount {each}" for each in mounts), 'exec "$@"'))
    words = ["unshare", "--mount", "--propagation", "private", *(["--map-root-user"] if userns else [])]
    main = [sys.executable, "-S", "-c", MAIN, str(root), str(user), "bare" if bare else ""]
    with child([*words, "sh", "-ec", script, "sh", *main], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"runs\n"
        yield process
        process.stdin.close()


def test_files_folders_and_links_come_with_names_of_every_kind(tmp_path):
    names = [b"plain", b"two\nlines", b"\x1b[2Jescape", b"not-\xff-utf8", b"..data", b"-rf", "ünï".encode(), b"x" * 255]
    (tmp_path / "etc" / "empty").mkdir(parents=True)
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "etc") + b"/" + name)).write_bytes(name)
    (tmp_path / "etc" / "nothing").write_bytes(b"")
    os.symlink("..data", tmp_path / "etc" / "link")
    seen = snapshot("/etc", root=tmp_path)
    assert seen.files == {b"/etc/" + name: name for name in names} | {b"/etc/nothing": b""}
    assert seen.folders == [b"/etc", b"/etc/empty"]
    assert seen.links == {b"/etc/link": b"..data"}
    assert seen.problems == {}
    assert seen.summary == Summary("")


def test_no_link_leads_out_of_the_root_and_none_is_followed_below_a_path(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "data").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    for name, target in {
        "absolute": outside,
        "up": "../../outside",
        "file": outside / "secret",
        "self": "self",
        "ping": "pong",
        "pong": "ping",
        "magic": "/proc/self/cwd",
        "top": "/",
    }.items():
        os.symlink(target, root / "data" / name)
    (root / "real").mkdir()
    (root / "real" / "file").write_text("in the root")
    os.symlink("/real", root / "alias")
    below = snapshot("/data", root=root)
    assert below.files == {}
    assert len(below.links) == 8
    assert below.links[b"/data/absolute"] == bytes(outside)
    asked = snapshot(
        "/alias", "/data/absolute", "/data/up", "/data/file", "/data/self", "/data/ping", "/data/magic", root=root
    )
    assert asked.files == {b"/alias/file": b"in the root"}
    assert set(asked.problems) == {
        b"/data/" + name for name in (b"absolute", b"up", b"file", b"self", b"ping", b"magic")
    }
    assert asked.problems[b"/data/self"] == "too many levels of symbolic links"
    everything = snapshot("/data/top", root=root)
    assert everything.files == {b"/data/top/real/file": b"in the root"}


def test_a_path_below_another_comes_with_it_or_is_named(tmp_path):
    for folder in ("a/real", "b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x").write_text(folder)
    for name, target in (("in", "real"), ("out", "../b"), ("absolute", "/b")):
        (tmp_path / "a" / name).symlink_to(target)
    named = [f"/a/{name}" for name in ("real/x", "in/x", "out/x", "absolute", "absent", "real/x/more")]
    seen = snapshot("/a", *named, root=tmp_path)
    assert seen.files == {b"/a/real/x": b"a/real"}
    assert seen.missing == {b"/a/out/x", b"/a/absolute", b"/a/absent", b"/a/real/x/more"}
    assert "a link on the way leads out of /a" in seen.problems[b"/a/out/x"]
    assert seen.problems[b"/a/absent"] == "no such file or directory"
    assert snapshot("/a", "/a/out/x", "/b/x", root=tmp_path).files == {b"/a/real/x": b"a/real", b"/b/x": b"b"}
    below = snapshot("/absent", "/absent/x", root=tmp_path)
    assert below.missing == {b"/absent", b"/absent/x"}


def test_a_path_below_a_folder_that_cannot_be_listed_is_sent_by_itself(tmp_path):
    tmp_path.chmod(0o755)
    private = tmp_path / "etc" / "private"
    (private / "more").mkdir(parents=True)
    (private / "more" / "x").write_text("x")
    (private / "key").write_text("key")
    (private / "hidden").write_text("hidden")
    (private / "current").symlink_to("hidden")
    os.mkfifo(private / "fifo")
    (tmp_path / "etc" / "alias").symlink_to("private/key")
    (tmp_path / "etc" / "other").symlink_to("private/hidden")
    private.chmod(0o711)
    inside = [f"/etc/private/{name}" for name in ("key", "more", "more/x", "current", "fifo", "absent")]
    with container(tmp_path, user=NOBODY) as process:
        seen = snapshot("/etc", *inside, "/etc/alias", "/etc/other", pid=process.pid)
        alone = snapshot("/etc/private", "/etc/private/key", pid=process.pid)
    assert seen.files == {b"/etc/private/key": b"key", b"/etc/private/more/x": b"x"}
    assert seen.folders == [b"/etc", b"/etc/private", b"/etc/private/more"]
    assert seen.links.keys() == {b"/etc/alias", b"/etc/other", b"/etc/private/current"}
    assert seen.problems[b"/etc/private"] == "permission denied"
    assert seen.missing == {b"/etc/other", *(b"/etc/private/" + name for name in (b"current", b"fifo", b"absent"))}
    assert seen.problems[b"/etc/other"] == "a link on the way leads to what was not copied; name what it leads to"
    assert (alone.files, alone.missing) == ({b"/etc/private/key": b"key"}, {b"/etc/private"})


def test_devices_pipes_and_sockets_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", 0o20600, os.makedev(1, 5))
    os.mknod(tmp_path / "block", 0o60600, os.makedev(7, 0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (tmp_path / "file").write_text("content")
    seen = snapshot("/", "/fifo", root=tmp_path)
    assert seen.files == {b"/file": b"content"}
    assert seen.problems == dict.fromkeys((b"/fifo", b"/device", b"/block", b"/socket"), "a device, pipe or socket")
    alone = snapshot("/fifo", root=tmp_path)
    assert (alone.files, alone.problems) == ({}, {b"/fifo": "a device, pipe or socket"})


def test_a_huge_sparse_file_is_left_out_and_what_fits_is_sent(tmp_path):
    with (tmp_path / "a-huge").open("wb") as file:
        file.truncate(1 << 40)
    with (tmp_path / "b-sparse").open("wb") as file:
        file.truncate(MIB)
    (tmp_path / "c-more").write_bytes(b"x" * MIB)
    (tmp_path / "d-small").write_bytes(b"y")
    seen = snapshot("/", root=tmp_path, max_bytes=2 * MIB - 1)
    assert seen.files == {b"/b-sparse": bytes(MIB), b"/d-small": b"y"}
    assert seen.problems == {
        b"/a-huge": "1099511627776 bytes, and 2097151 more may be sent",
        b"/c-more": "1048576 bytes, and 1048575 more may be sent",
    }


def test_files_that_change_while_they_are_read(tmp_path):
    """The socket's buffer holds the child in its first large file until the test has changed that, and all others."""
    for name in ("a-first", "b-grows", "c-shrinks", "d-goes", "e-becomes-a-link", "f-becomes-a-folder", "g-new"):
        (tmp_path / name).write_bytes(name.encode() * MIB)

    changed = threading.Event()

    def change():
        if changed.is_set():
            return
        changed.set()
        os.truncate(tmp_path / "a-first", 2 * MIB)
        with (tmp_path / "b-grows").open("ab") as file:
            file.write(b"more")
        os.truncate(tmp_path / "c-shrinks", 10)
        (tmp_path / "d-goes").unlink()
        (tmp_path / "e-becomes-a-link").unlink()
        os.symlink("/etc/shadow", tmp_path / "e-becomes-a-link")
        (tmp_path / "f-becomes-a-folder").unlink()
        (tmp_path / "f-becomes-a-folder").mkdir()
        (tmp_path / "g").write_bytes(b"new")
        (tmp_path / "g").replace(tmp_path / "g-new")

    seen = snapshot("/", root=tmp_path, at_first=change)
    assert seen.problems == {
        b"/a-first": "it became shorter while it was read",
        b"/d-goes": "no such file or directory",
    }
    assert seen.files == {
        b"/b-grows": b"b-grows" * MIB + b"more",
        b"/c-shrinks": b"c-shrinks"[:9] + b"c",
        b"/g-new": b"new",
    }
    assert seen.links == {b"/e-becomes-a-link": b"/etc/shadow"}
    assert seen.folders == [b"/f-becomes-a-folder"]
    assert seen.summary == Summary("")


def test_what_lies_too_deep_is_left_out_and_the_rest_is_sent(tmp_path):
    place = tmp_path
    for level in range(MAX_DEPTH + 1):
        place /= f"d{level:03}" + "x" * 40
        place.mkdir()
        (place / "file").write_bytes(b"%d" % level)
    seen = snapshot("/", root=tmp_path)
    assert len(seen.files) == MAX_DEPTH
    assert list(seen.problems.values()) == [f"it lies more than {MAX_DEPTH} folders deep"]
    inner = b"/" + bytes(place.relative_to(tmp_path))
    assert seen.problems.keys() == {inner}
    assert snapshot(inner.decode(), root=tmp_path).files == {inner + b"/file": b"%d" % MAX_DEPTH}
    both = snapshot("/", inner.decode(), inner.decode() + "/file", root=tmp_path)
    assert (both.files, both.problems) == (seen.files | {inner + b"/file": b"%d" % MAX_DEPTH}, {})
    assert len(both.folders) == len(set(both.folders)) == MAX_DEPTH + 1


def test_a_path_that_is_too_long_is_left_out(tmp_path):
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(18):
            os.mkdir("y" * 250)
            os.chdir("y" * 250)
        Path("file").write_text("deep")
    finally:
        os.chdir(before)
    seen = snapshot("/", root=tmp_path)
    assert len(seen.folders) == 16
    assert seen.files == {}
    assert list(seen.problems.values()) == ["its path is too long"]


@pytest.mark.timeout(2 * PATIENCE)
def test_more_entries_than_a_snapshot_has_end_it_and_it_says_so(tmp_path):
    (tmp_path / "many").mkdir()
    many = os.open(tmp_path / "many", os.O_RDONLY)
    try:
        for number in range(MAX_ENTRIES + 1):
            os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=many))
        seen = snapshot("/many", root=tmp_path)
        assert len(seen.files) == MAX_ENTRIES - 1
        assert seen.summary == Summary(f"it has more than {MAX_ENTRIES} files and folders")
        for number in range(2):
            os.unlink(f"{number}", dir_fd=many)
        seen = snapshot("/many", root=tmp_path)
        assert (len(seen.files), seen.summary) == (MAX_ENTRIES - 1, Summary(""))
    finally:
        os.close(many)


def test_interfaces_of_the_kernel_are_left_out(tmp_path):
    for name in ("etc", "proc", "sys", "hidden/proc", "cache"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc" / "file").write_text("content")
    mounts = [f"-t proc none {tmp_path}/{name}" for name in ("proc", "hidden/proc")]
    mounts += [
        f"-t sysfs none {tmp_path}/sys",
        f"-t tmpfs none {tmp_path}/cache",
        f"--bind {tmp_path}/etc {tmp_path}/cache",
    ]
    with container(tmp_path, mounts=mounts) as app:
        seen = snapshot("/", "/sys/kernel", pid=app.pid)
        assert seen.files == {b"/etc/file": b"content", b"/cache/file": b"content"}
        assert seen.problems == dict.fromkeys(
            (b"/proc", b"/sys", b"/sys/kernel", b"/hidden/proc"), "an interface of the kernel, no files"
        )
        assert seen.missing == {b"/sys/kernel"}
        below = snapshot("/sys/kernel", "/proc/1/environ", pid=app.pid)
        assert (below.files, len(below.problems), len(below.missing)) == ({}, 2, 2)
        volumes = snapshot(pid=app.pid)
        assert volumes.files == {b"/cache/file": b"content"}
        assert set(volumes.problems) == {b"/hidden/proc"}
        assert volumes.missing == set(), "nobody has named it"


def test_files_are_read_as_the_user_of_the_process_and_no_more(tmp_path):
    tmp_path.chmod(0o755)
    for name, mode, owner in (("mine", 0o600, NOBODY), ("open", 0o644, 0), ("secret", 0o600, 0), ("other", 0o600, 1)):
        (tmp_path / name).write_text(name)
        os.chown(tmp_path / name, owner, owner)
        (tmp_path / name).chmod(mode)
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "file").write_text("closed")
    (tmp_path / "unsearchable").mkdir()
    (tmp_path / "unsearchable" / "file").write_text("unsearchable")
    (tmp_path / "unsearchable").chmod(0o744)
    with container(tmp_path, user=NOBODY) as app:
        seen = snapshot("/", pid=app.pid)
    assert seen.files == {b"/mine": b"mine", b"/open": b"open"}
    assert set(seen.problems) == {b"/secret", b"/other", b"/closed", b"/unsearchable"}
    assert set(seen.problems.values()) == {"permission denied"}
    with container(tmp_path) as app:
        assert len(snapshot("/", pid=app.pid).files) == 6
    with container(tmp_path, bare=True) as app:
        seen = snapshot("/", pid=app.pid)
    assert set(seen.problems) == {b"/mine", b"/other"}


def test_capabilities_in_another_user_namespace_open_nothing_here(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "other").write_text("other")
    os.chown(tmp_path / "other", 1, 1)
    (tmp_path / "other").chmod(0o600)
    with container(tmp_path, userns=True) as app:
        seen = snapshot("/", pid=app.pid)
    assert (seen.files, seen.problems) == ({}, {b"/other": "permission denied"})


def test_the_child_has_the_rights_of_the_process_and_ends_with_its_socket(tmp_path):
    """It waits for somebody who reads."""
    (tmp_path / "large").write_bytes(bytes(32 * MIB))
    os.chown(tmp_path / "large", NOBODY, NOBODY)
    tmp_path.chmod(0o755)
    (tmp_path / "large").chmod(0o600)

    async def work(reader):
        with container(tmp_path, user=NOBODY) as app:
            sock = await reader.files(FilesRequest(app.pid, started(app.pid), "", ("/large",), 64 * MIB))
            with sock:
                (sender,) = children(reader.pid)
                status, limits = described(sender)
                assert status["Uid"].split() == [str(NOBODY)] * 4
                assert status["Gid"].split() == [str(NOBODY)] * 4
                assert status["Groups"].split() == []
                for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                    assert int(status[name], 16) == 0
                assert status["NoNewPrivs"].strip() == "1"
                assert "Max processes             0 " in limits
                assert os.getpriority(os.PRIO_PROCESS, sender) == 10
                assert (await asyncio.to_thread(run, "ionice", "-p", str(sender))) == "best-effort: prio 7\n"
            until(lambda: not alive(sender), within=20, what="the child to end with its socket")
            until(sock.over, within=20, what="its slot to be free")

    using(work)


def test_a_hanging_file_system_ends_with_the_socket_and_takes_no_other_snapshot_along(tmp_path, monkeypatch):
    (tmp_path / "root" / "ok").mkdir(parents=True)
    (tmp_path / "root" / "ok" / "file").write_text("content")

    async def work(reader):
        with hanging(tmp_path / "root" / "hangs"):
            stuck = [
                await reader.files(FilesRequest(None, None, str(tmp_path / "root"), (f"/hangs/{number}",), MIB))
                for number in range(reader_module.SNAPSHOTS)
            ]
            asked = FilesRequest(None, None, str(tmp_path / "root"), ("/ok",), MIB)
            with monkeypatch.context() as patch, pytest.raises(ReadError, match="none ended within"):
                patch.setattr(reader_module, "SNAPSHOT_WAIT", 0.2)
                await reader.files(asked)
            monkeypatch.setattr(reader_module, "SNAPSHOT_WAIT", 60.0)
            waiting = asyncio.ensure_future(reader.files(asked))
            await asyncio.sleep(2 * reader_module.SNAPSHOT_LOOK)
            assert (reader._opening, len(reader._snapshots)) == (0, reader_module.SNAPSHOTS), "it waits for a place"
            stuck[0].close()
            seen = Seen()
            with await waiting as sock:
                await received(sock, seen)
            assert seen.files == {b"/ok/file": b"content"}
            stuck[1].close()
            for each in (*stuck, sock):
                until(each.over, within=20, what="the child to end")

    using(work)


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (("etc",), "must be absolute"),
        (("/etc/../..",), "must be absolute, without '..'"),
        (("/a\0b",), "must be absolute"),
        ((), "nothing is mounted"),
    ],
)
def test_what_is_no_path_is_refused(tmp_path, paths, reason):
    with pytest.raises(ReadError, match=reason):
        snapshot(*paths, root=tmp_path)


def test_another_process_of_the_same_id_is_not_read(tmp_path):
    async def work(reader):
        with container(tmp_path) as app, pytest.raises(ReadError, match="No such process"):
            await reader.files(FilesRequest(app.pid, started(app.pid) + 1, "", ("/",), MIB))

    using(work)
