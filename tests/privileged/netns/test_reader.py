"""Files below a container's root, as a hostile container would lay them out."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.netns import AbsentFileError, FileReader
from sidestep.netns.reader_child import MAX_FILE
from tests.harness.processes import Process, alive, children, started
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

T = TypeVar("T")
SECRET = b"outside of the root"


def using(work: Callable[[FileReader], Awaitable[T]], **settings: float) -> T:
    """Run `work` with a reader that is closed afterwards."""

    async def main() -> T:
        reader = FileReader(**settings)
        try:
            return await work(reader)
        finally:
            reader.close()

    before = children(os.getpid())
    try:
        return asyncio.run(main())
    finally:
        assert children(os.getpid()) == before


def read(root: Path, path: str) -> bytes:
    return using(lambda reader: reader.read(str(root), path))


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

    async def work(reader):
        assert await reader.read(f"/proc/{pid}/root", outside, birth=birth) == SECRET
        for wrong in (birth + 1, 0, -1):
            with pytest.raises(KernelError) as caught:
                await reader.read(f"/proc/{pid}/root", outside, birth=wrong)
            assert caught.value.errno == errno.ESRCH
        with pytest.raises(KernelError) as caught:
            await reader.read("/proc/4194303/root", outside, birth=birth)
        assert caught.value.errno in {errno.ESRCH, errno.ENOENT}

    using(work)


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

    async def work(reader: FileReader) -> set[bytes]:
        return {await reader.read(str(root), "/file") for _ in range(200)}

    writer = threading.Thread(target=swap)
    writer.start()
    try:
        seen = using(work)
    finally:
        done.set()
        writer.join()
    assert seen <= set(versions)


def test_a_file_that_is_rewritten_in_place_is_read_whole_or_refused(root):
    path, done = root / "file", threading.Event()
    refusals: set[str] = set()
    versions = [bytes([65 + number]) * 500_000 for number in range(4)]
    path.write_bytes(versions[0])

    def rewrite() -> None:
        number = 0
        while not done.is_set():
            number += 1
            with open(path, "r+b", buffering=0) as file:
                file.writelines(versions[number % 4][start : start + 50_000] for start in range(0, 500_000, 50_000))

    async def work(reader: FileReader) -> set[bytes]:
        seen = set()
        for _ in range(100):
            try:
                seen.add(await reader.read(str(root), "/file"))
            except ConfigurationError as error:
                refusals.add(error.reason)
        return seen

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen = using(work)
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


def test_a_helper_that_hangs_is_killed_and_replaced(root):
    async def work(reader: FileReader) -> None:
        assert await reader.read(str(root), "/etc/tls/tls.crt") == b"certificate"
        first = reader.helper_pid
        os.kill(first, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(KernelError) as caught:
            await reader.read(str(root), "/etc/tls/tls.crt")
        assert caught.value.errno == errno.ETIMEDOUT
        assert 0.2 <= time.monotonic() - start < 2
        assert await reader.read(str(root), "/etc/tls/tls.crt") == b"certificate"
        assert reader.helper_pid != first
        assert not alive(first)

    using(work, deadline=0.3, penalty=0)


def test_a_root_that_hung_is_refused_at_once_and_others_are_read(root, tmp_path):
    (tmp_path / "file").write_bytes(b"other")

    async def work(reader: FileReader) -> None:
        await reader.read(str(root), "/etc/tls/tls.crt")
        os.kill(reader.helper_pid, signal.SIGSTOP)
        with pytest.raises(KernelError):
            await reader.read(str(root), "/etc/tls/tls.crt")
        start = time.monotonic()
        with pytest.raises(KernelError, match="hung before"):
            await reader.read(str(root), "/etc/tls/tls.crt")
        assert time.monotonic() - start < 0.2
        assert await reader.read(str(tmp_path), "/file") == b"other"

    using(work, deadline=0.3, penalty=600)


def test_a_killed_helper_is_replaced(root):
    async def work(reader: FileReader) -> None:
        await reader.read(str(root), "/etc/tls/tls.crt")
        first = reader.helper_pid
        os.kill(first, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: not alive(first), within=5, what="the helper to die")
        assert await reader.read(str(root), "/etc/tls/tls.crt") == b"certificate"
        os.kill(reader.helper_pid, signal.SIGSTOP)
        pending = asyncio.ensure_future(reader.read(str(root), "/etc/tls/tls.crt"))
        await asyncio.sleep(0)
        os.kill(reader.helper_pid, signal.SIGKILL)
        with pytest.raises(KernelError) as caught:
            await pending
        assert caught.value.errno == errno.EPIPE
        assert await reader.read(str(root), "/etc/tls/tls.crt") == b"certificate"

    using(work, penalty=0)


def test_a_cancelled_read_does_not_answer_the_next(root):
    (root / "second").write_bytes(b"second")

    async def work(reader: FileReader) -> None:
        await reader.read(str(root), "/second")
        os.kill(reader.helper_pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(str(root), "/etc/tls/tls.crt")
        assert await reader.read(str(root), "/second") == b"second"

    using(work)


def test_concurrent_reads_get_their_own_answers(root):
    for number in range(20):
        (root / f"file{number}").write_bytes(b"%d" % number * 50_000)

    async def work(reader: FileReader) -> list[bytes]:
        return await asyncio.gather(*(reader.read(str(root), f"/file{number}") for number in range(20)))

    assert using(work) == [b"%d" % number * 50_000 for number in range(20)]


def test_the_helper_dies_with_the_daemon_even_when_it_hangs(root, tmp_path):
    script = (
        "import asyncio, os, signal, sys\n"
        "from sidestep.netns import FileReader\n"
        "reader = FileReader()\n"
        "asyncio.run(reader.read(sys.argv[1], '/etc/tls/tls.crt'))\n"
        "os.kill(reader.helper_pid, signal.SIGSTOP)\n"
        "print(reader.helper_pid, flush=True)\n"
        "signal.pause()\n"
    )
    with Process([sys.executable, "-c", script, root], log=tmp_path / "log", stdout=tmp_path / "out") as daemon:
        until(lambda: daemon.output().endswith("\n") or not daemon.running, within=10, what="the helper")
        helper = int(daemon.output())
        assert alive(helper)
        daemon.kill()
        until(lambda: not alive(helper), within=5, what="the helper to die")
