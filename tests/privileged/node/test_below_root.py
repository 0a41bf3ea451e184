"""Files below a container's root, as a hostile container would lay them out."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.node.certificates.below_root import MAX_FILE, AbsentFileError, Root, open_regular, read_steady, stamp
from tests.harness.processes import Process, started
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

SECRET = b"outside of the root"


def read(root: Path, path: str, *, birth: int | None = None) -> bytes:
    fd = open_regular(Root(str(root), birth), path)
    try:
        return read_steady(fd, path)
    finally:
        os.close(fd)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(SECRET)
    folder = tmp_path / "root"
    (folder / "etc/tls").mkdir(parents=True)
    (folder / "etc/tls/tls.crt").write_bytes(b"certificate")
    return folder


@pytest.mark.parametrize("path", ["/etc/tls/tls.crt", "etc/tls/tls.crt", "//etc/./tls//tls.crt"])
def test_a_regular_file_is_read(root, path):
    assert read(root, path) == b"certificate"


@pytest.mark.parametrize("path", ["/etc/../etc/tls/tls.crt", "..", "../outside", "/etc/tls/.."])
def test_dot_dot_is_refused(root, path):
    with pytest.raises(ConfigurationError, match=r"'\.\.'"):
        read(root, path)


@pytest.mark.parametrize("path", ["", "/", "//"])
def test_a_path_names_a_file(root, path):
    with pytest.raises(ConfigurationError, match="names no file"):
        read(root, path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 20_000, "\udcff", "a\ud800", "ü" * 200])
def test_odd_paths_are_answered(root, path):
    with pytest.raises((ConfigurationError, KernelError)):
        read(root, path)


def test_a_missing_file_is_told_apart(root):
    for path in ("/etc/tls/tls.key", "/no/such/folder/x", "/etc/tls/tls.crt/below"):
        with pytest.raises(AbsentFileError):
            read(root, path)


def test_a_missing_root_is_the_kernels_error(root):
    with pytest.raises(KernelError) as caught:
        read(root / "gone", "/etc/tls/tls.crt")
    assert caught.value.errno == errno.ENOENT


def test_a_process_is_told_from_a_later_one_of_the_same_id(root):
    """A process id comes round again; the root of whoever has it now may be the node's own."""
    outside = str(root.parent / "outside")
    pid, birth = os.getpid(), started(os.getpid())

    assert read(Path(f"/proc/{pid}/root"), outside, birth=birth) == SECRET
    for wrong in (birth + 1, 0, -1):
        with pytest.raises(KernelError) as caught:
            read(Path(f"/proc/{pid}/root"), outside, birth=wrong)
        assert caught.value.errno == errno.ESRCH
    with pytest.raises(KernelError) as caught:
        read(Path("/proc/4194303/root"), outside, birth=birth)
    assert caught.value.errno in {errno.ESRCH, errno.ENOENT}


def test_an_absolute_link_stays_below_the_root(root):
    (root / "link").symlink_to("/etc/tls/tls.crt")
    assert read(root, "/link") == b"certificate"


def test_kubernetes_secret_volumes_are_read_through_their_links(root):
    folder = root / "etc/volume"
    (folder / "..2024_01_01").mkdir(parents=True)
    (folder / "..2024_01_01/tls.crt").write_bytes(b"first")
    (folder / "..data").symlink_to("..2024_01_01")
    (folder / "tls.crt").symlink_to("..data/tls.crt")
    assert read(root, "/etc/volume/tls.crt") == b"first"


@pytest.mark.parametrize(
    "target", ["../outside", "../../../../../../../../{outside}", "{outside}", "/proc/self/root/{outside}"]
)
def test_links_that_lead_out_find_nothing(root, target):
    outside = root.parent / "outside"
    (root / "link").symlink_to(target.replace("{outside}", str(outside)))
    with pytest.raises(AbsentFileError):
        read(root, "/link")


def test_a_linked_folder_that_leads_out_finds_nothing(root):
    (root / "folder").symlink_to(root.parent)
    with pytest.raises(AbsentFileError):
        read(root, "/folder/outside")


def test_a_link_that_leads_up_stops_at_the_root(root):
    (root / "link").symlink_to("../../../../etc/tls/tls.crt")
    assert read(root, "/link") == b"certificate"


def test_links_in_a_circle_are_refused(root):
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    with pytest.raises(ConfigurationError):
        read(root, "/one")


def test_magic_links_are_refused():
    with pytest.raises(ConfigurationError):
        read(Path("/"), "/proc/self/exe")
    with pytest.raises(ConfigurationError):
        read(Path("/"), "/proc/self/root/etc/passwd")


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "null", "tty"])
def test_only_regular_files_are_opened(root, kind):
    path = root / "odd"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "null":
            os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
        case "tty":
            os.mknod(path, 0o666 | 0o020000, os.makedev(5, 0))
    start = time.monotonic()
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read(root, "/odd")
    assert time.monotonic() - start < 2


def test_a_file_that_would_wait_for_data_does_not():
    start = time.monotonic()
    with pytest.raises((KernelError, ConfigurationError)):
        read(Path("/"), "/proc/kmsg")
    assert time.monotonic() - start < 2


def test_sizes_up_to_the_limit(root):
    for size in (0, 1, MAX_FILE - 1, MAX_FILE):
        (root / "file").write_bytes(b"x" * size)
        assert read(root, "/file") == b"x" * size
    for size in (MAX_FILE + 1, 1 << 40):
        with open(root / "file", "wb") as file:
            file.truncate(size)
        with pytest.raises(ConfigurationError, match="larger"):
            read(root, "/file")


def test_a_file_that_is_swapped_is_read_whole(root):
    """The reader sees one version or the other, never a mixture, while a writer replaces the file all the time."""
    path, done = root / "file", threading.Event()
    versions = [bytes([65 + number]) * (100_000 + number) for number in range(4)]
    path.write_bytes(versions[0])

    def swap() -> None:
        number = 0
        while not done.is_set():
            number += 1
            (root / "next").write_bytes(versions[number % 4])
            (root / "next").rename(path)

    writer = threading.Thread(target=swap)
    writer.start()
    try:
        seen = {read(root, "/file") for _ in range(200)}
    finally:
        done.set()
        writer.join()
    assert seen <= set(versions)


def test_a_file_that_is_rewritten_in_place_is_read_whole_or_refused(root):
    path, done = root / "file", threading.Event()
    refusals: set[str] = set()
    seen: set[bytes] = set()
    versions = [bytes([65 + number]) * 500_000 for number in range(4)]
    path.write_bytes(versions[0])

    def rewrite() -> None:
        number = 0
        while not done.is_set():
            number += 1
            with open(path, "r+b", buffering=0) as file:
                file.writelines(versions[number % 4][start : start + 50_000] for start in range(0, 500_000, 50_000))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(100):
            try:
                seen.add(read(root, "/file"))
            except ConfigurationError as error:
                refusals.add(error.reason)
    finally:
        done.set()
        writer.join()
    assert {len(content) for content in seen} <= {500_000}
    assert refusals <= {"changes while it is read"}


def test_a_container_is_read_through_its_process(tmp_path):
    """`/proc/PID/root` of a process in a mount namespace of its own, with a file that only that namespace has."""
    script = 'mount -t tmpfs none "$0" && echo -n inside > "$0/file" && touch "$0/ready" && exec sleep 600'
    place = tmp_path / "mount"
    place.mkdir()
    with Process(["unshare", "--mount", "sh", "-c", script, str(place)], log=tmp_path / "log") as process:
        root = Path(f"/proc/{process.pid}/root")
        until((root / str(place)[1:] / "ready").exists, within=5, what="the mount")
        assert not (place / "file").exists()
        assert read(root, f"{place}/file") == b"inside"
        process.kill()
        with pytest.raises(KernelError):
            read(root, f"{place}/file")


def test_a_stamp_tells_one_version_from_the_next(root):
    folder = Root(str(root))
    first = stamp(folder, "/etc/tls/tls.crt")
    assert first == stamp(folder, "/etc/tls/tls.crt")
    assert stamp(folder, "/etc/tls/none") is None
    (root / "etc/tls/next").write_bytes(b"certificate")
    (root / "etc/tls/next").rename(root / "etc/tls/tls.crt")
    assert stamp(folder, "/etc/tls/tls.crt") not in {first, None}
    os.mkfifo(root / "pipe")
    assert stamp(folder, "/pipe")
