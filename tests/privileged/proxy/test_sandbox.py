"""What code that runs inside a locked pod proxy can and cannot do: the probes of an attacker, each by its errno.

One proxy serves all probes that are refused; calls that end the process get the crash they cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from sidestep.aio.packets import sealed_memfd
from sidestep.node.proxies.desired import CredentialSource
from sidestep.sandbox.syscalls import ALLOWED, ARCHITECTURES, FATAL
from tests.harness.authority import Authority
from tests.privileged.proxy.scene import (
    Scene,
    children_of,
    descriptors_of,
    open_descriptors,
    port,
    scene,
    text_of,
    until,
)

pytestmark = pytest.mark.privileged

ARCHITECTURE = ARCHITECTURES[platform.machine()][0]


def number(name: str) -> int:
    """The number of a call that the filter knows."""
    found = (ALLOWED | FATAL)[name][ARCHITECTURE]
    assert found is not None
    return found


def inside(code: str) -> object:
    """Run code in a fresh proxy."""

    async def run() -> object:
        async with scene() as it:
            return await it.run(code)

    return asyncio.run(run())


def ip(*words: str, check: bool = True) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=check, capture_output=True, timeout=10)


def exists(path: str) -> bool:
    """Whether there is such a file."""
    return Path(path).exists()


def owner_of(path: str) -> int:
    """The user a file belongs to."""
    return Path(path).stat().st_uid


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_no_privilege_is_left():
    async def look() -> None:
        async with scene() as it:
            status = status_of(it.proxy.pid)
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[name], 16) == 0, name
            assert status["Uid"].split() == status["Gid"].split() == [str(it.uid)] * 4
            assert status["Groups"] == ""
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "2"
            assert status["Threads"] == "1"
            # Undumpable: its files in /proc are root's.
            assert owner_of(f"/proc/{it.proxy.pid}/environ") == 0
            assert set(descriptors_of(it.proxy.pid)) >= {0, 1, 2}

    asyncio.run(look())


def test_limits_are_in_force():
    async def look() -> None:
        async with scene() as it:
            rows = text_of(f"/proc/{it.proxy.pid}/limits").splitlines()
            limits = {row[:26].strip(): row[26:].split()[:2] for row in rows[1:]}
            for name in ("Max core file size", "Max processes", "Max locked memory", "Max msgqueue size"):
                assert limits[name] == ["0", "0"], name
            assert limits["Max data size"] == [str(1 << 30)] * 2
            assert limits["Max file size"] == [str(16 << 20)] * 2
            assert int(limits["Max open files"][1]) <= 65536
            with pytest.raises(RuntimeError, match="MemoryError"):
                await it.run("result = len(bytearray(2 << 30))")
            assert await it.run("result = 'still here'") == "still here"

    asyncio.run(look())


def test_the_file_system_is_empty_and_read_only():
    async def look() -> None:
        async with scene() as it:
            assert await it.run("result = os.listdir('/')") == ["proc"]
            assert await it.run("result = os.listdir('/proc')") == ["self"]
            assert await it.run("result = os.listdir('/proc/self')") == ["fd"]
            assert await it.run("result = os.getcwd()") == "/"
            for path in (
                "/etc/passwd",
                "/proc/1/environ",
                "/proc/1/root/etc/passwd",
                "/proc/self/root/etc/passwd",
                "/proc/self/exe",
                "/proc/self/environ",
                "/proc/self/mem",
                "/proc/self/cwd/../etc/passwd",
                "/proc/self/fd/../../1/environ",
                "/proc/self/fd/../../../../etc/passwd",
                f"/proc/{os.getpid()}/environ",
                "/var/run/secrets/kubernetes.io/serviceaccount/token",
                "/run/sidestep/node.sock",
                "/sys/fs/bpf",
                "/dev/mem",
                "../../../../etc/passwd",
            ):
                assert await it.errno(f"os.open({path!r}, os.O_RDONLY)") == errno.ENOENT, path
            for path in ("/new", "/proc/new", "/proc/self/fd/new"):
                code = f"os.open({path!r}, os.O_WRONLY | os.O_CREAT)"
                assert await it.errno(code) == errno.EPERM, path
            mounts = text_of(f"/proc/{it.proxy.pid}/mountinfo").splitlines()
            assert [line.split()[4] for line in mounts] == ["/", "/proc/self/fd"]
            assert all(line.split()[5].startswith("ro,nosuid,nodev,noexec") for line in mounts)

    asyncio.run(look())


def test_every_descriptor_is_accounted_for():
    listing = inside("""
names = {}
for name in os.listdir('/proc/self/fd'):
    try:
        names[name] = os.readlink('/proc/self/fd/' + name)
    except FileNotFoundError:
        pass
result = sorted(value.split(':')[0] for value in names.values())
""")
    # stdin and stdout are /dev/null, stderr is the daemon's pipe; the page for heartbeats; control socket, listener,
    # this connection.
    assert listing == ["/dev/null", "/dev/null", "/memfd", "pipe", "socket", "socket", "socket"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.fork()", errno.EPERM),
        ("syscall({clone3}, 0, 0)", errno.EPERM),
        ("os.kill(os.getppid(), 0)", errno.EPERM),
        ("os.kill(os.getpid(), 0)", errno.EPERM),
        ("signal_ = syscall({pidfd_open}, 1, 0)", errno.EPERM),
        ("os.setuid(0)", errno.EPERM),
        ("os.setgroups([0])", errno.EPERM),
        ("syscall({prctl}, 4, 1, 0, 0, 0)", errno.EPERM),
        ("syscall({capset}, 0, 0)", errno.EPERM),
        ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", errno.EPERM),
        ("socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)", errno.EPERM),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)", errno.EPERM),
        ("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)", errno.EPERM),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", errno.EPERM),
        ("socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", errno.EPERM),
        ("socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)", errno.EPERM),
        ("socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)", errno.EPERM),
        ("s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()", errno.EPERM),
        ("socket.socket().setsockopt(socket.SOL_SOCKET, 26, b'x' * 16)", errno.EPERM),
        ("socket.socket().setsockopt(socket.SOL_SOCKET, 50, 3)", errno.EPERM),
        ("socket.socket().setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)", errno.EPERM),
        ("socket.socket().setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)", errno.EPERM),
        ("socket.socket(socket.AF_INET6).setsockopt(socket.IPPROTO_IPV6, 36, 1)", errno.EPERM),
        ("socket.socket(socket.AF_INET6).setsockopt(255, 36, 1)", errno.EPERM),
        ("__import__('fcntl').ioctl(proxy.channel.fileno(), 0x8912, bytes(16))", errno.EPERM),
        ("syscall({mmap}, 0, 4096, 7, 0x22, -1, 0)", errno.EPERM),
        ("page = syscall({mmap}, 0, 4096, 3, 0x22, -1, 0); syscall({mprotect}, page, 4096, 5)", errno.EPERM),
        ("syscall({prlimit64}, 0, 7, ctypes.create_string_buffer(16), 0)", errno.EPERM),
        ("syscall({prlimit64}, 1, 7, 0, ctypes.create_string_buffer(16))", errno.EPERM),
        ("os.memfd_create('x')", errno.EPERM),
        ("os.memfd_create('x', os.MFD_HUGETLB)", errno.EPERM),
        ("syscall({mmap}, 0, 4096, 3, 0x21, -1, 0)", errno.EPERM),  # MAP_SHARED | MAP_ANONYMOUS
        ("syscall({mmap}, 0, 4096, 3, 0x23, -1, 0)", errno.EPERM),  # MAP_SHARED_VALIDATE
        ("__import__('mmap').mmap(-1, 4096)", errno.EPERM),
        ("os.mkdir('/x')", errno.EPERM),
        ("os.chmod('/proc', 0o777)", errno.EPERM),
        ("os.truncate('/proc/self/fd/0', 0)", errno.EPERM),
        ("os.open('/proc/self/fd/2', os.O_RDWR)", errno.EPERM),
        ("os.open('/proc/self/fd/2', os.O_RDONLY)", errno.EACCES),
        ("os.sched_setaffinity(0, {{0}})", errno.EPERM),
        ("os.setpriority(os.PRIO_PROCESS, 0, -5)", errno.EPERM),
    ],
)
def test_what_is_refused(shared: tuple[asyncio.Runner, Scene], code: str, expected: int):
    runner, it = shared
    others = {"x86_64": (435, 434, 157, 126), "aarch64": (435, 434, 167, 91)}[platform.machine()]
    named = dict(zip(("clone3", "pidfd_open", "prctl", "capset"), others, strict=True))
    named |= {name: number(name) for name in ("mmap", "mprotect", "prlimit64")}
    assert runner.run(it.errno(code.format(**named))) == expected


@pytest.fixture(scope="module")
def shared():
    """One proxy for all probes that leave it alive."""
    with asyncio.Runner() as runner:
        made = scene()
        it = runner.run(made.__aenter__())
        yield runner, it
        assert it.proxy.restarts == 0
        runner.run(made.__aexit__(None, None, None))


@pytest.mark.parametrize(
    "call",
    [
        "execve",
        "ptrace",
        "bpf",
        "setns",
        "unshare",
        "mount",
        "pivot_root",
        "process_vm_readv",
        "io_uring_setup",
        "keyctl",
    ],
)
def test_what_ends_the_process(call: str):
    async def look() -> None:
        async with scene() as it:
            old = it.proxy.pid
            with pytest.raises(OSError, match=r"closed|reset"):
                await it.run(f"syscall({number(call)}, 0, 0, 0, 0, 0)")
            report = f"shop/orders: the proxy (process {old}) was ended by SIGSYS"
            await until(lambda: report in it.output, within=5, what=report)
            assert await it.run("result = os.getpid()") != old

    asyncio.run(look())


def test_other_processes_are_out_of_reach():
    async def look() -> None:
        async with scene() as it, scene() as other:
            for pid in (1, os.getpid(), it.supervisor.zygote.pid, other.proxy.pid):
                assert await it.errno(f"os.kill({pid}, 0)") == errno.EPERM
                assert await it.errno(f"os.stat('/proc/{pid}')") == errno.ENOENT
            assert other.proxy.restarts == 0

    asyncio.run(look())


def test_keys_load_from_memfds_and_only_ones_own_can_be_seen(tmp_path):
    identity = Authority().issue("app.test")
    secret = identity.key + identity.chain

    async def read() -> int:
        return sealed_memfd("identity", secret)

    source = CredentialSource(read)

    async def look() -> None:
        async with scene() as it, scene() as other:
            assert await it.proxy.apply({"id": source}, generation=1, ports=(port(identity="id"),)) == {}
            assert await it.proxy.apply({"id": source}, generation=2, ports=(port(80, identity="id"),)) == {}
            fd = await it.run("result = proxy.credentials['id']")
            assert await it.run("result = ssl.OPENSSL_VERSION") == ssl.OPENSSL_VERSION
            # It cannot be changed, not even by its owner.
            assert await it.errno(f"os.pwrite({fd}, b'x', 0)") == errno.EPERM
            # Another proxy has no path to it.
            for path in (f"/proc/{it.proxy.pid}/fd/{fd}", f"/proc/self/fd/{fd}"):
                found = await other.errno(f"assert b'PRIVATE KEY' not in open({path!r}, 'rb').read(10_000)")
                assert found in (errno.ENOENT, errno.ENXIO, errno.EPERM), path
            # The zygote never saw it, and nothing is on a disk.
            assert not any("memfd" in name for name in descriptors_of(it.supervisor.zygote.pid).values())
            # The daemon has closed its own; what it keeps are the pages in which the proxies count.
            kept = {name for name in descriptors_of("self").values() if "memfd" in name}
            assert kept == {"/memfd:sidestep-pulse (deleted)"}

    asyncio.run(look())


def test_unix_sockets_of_the_node_are_out_of_reach(tmp_path):
    async def look() -> None:
        async with scene() as it:
            name = f"sidestep-test-{os.getpid()}"
            with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
                abstract.bind(f"\0{name}")
                abstract.listen()
                named.bind(str(tmp_path / "socket"))
                named.listen()
                for address in (f"\0{name}", str(tmp_path / "socket")):
                    code = f"socket.socket(socket.AF_UNIX).connect({address!r})"
                    assert await it.errno(code) in (errno.ECONNREFUSED, errno.ENOENT)

    asyncio.run(look())


def test_the_nodes_network_is_out_of_reach():
    async def look() -> None:
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
            async with scene() as it:
                code = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
                assert await it.errno(code) == errno.ENETUNREACH  # Even `lo` is down there.

    asyncio.run(look())


def test_what_a_proxy_needs_works():
    code = """
import select
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
left, right = socket.socketpair()
epoll = select.epoll()
epoll.register(left, select.EPOLLIN)
right.sendmsg([b'one', b'two'])
assert epoll.poll(1)
assert left.recvmsg(10)[0] == b'onetwo'
read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
right.send(b'spliced')
assert os.splice(left.fileno(), write, 100) == 7
assert os.readv(read, [bytearray(7)]) == 7
inner = socket.socket(socket.AF_INET6)
inner.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 7)
inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
inner.setblocking(False)
inner.bind(('::', 0))
proxy.trust_store.get_ca_certs()
'täst.example'.encode('idna')
blob = bytearray(8 << 20)
blob += bytes(16 << 20)
os.urandom(8), time.sleep(0.001), os.cpu_count(), time.strftime('%c')
result = [proxy.trust_store.verify_mode == ssl.CERT_REQUIRED, len(blob)]
"""
    assert inside(code) == [True, 24 << 20]


def test_nothing_can_be_imported_any_more():
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        inside("import xmlrpc.client")


def test_a_namespace_with_a_proxy_in_it_is_freed_at_once():
    async def look() -> None:
        before = open_descriptors()
        async with scene() as it:
            inode = os.fstat(it.netns_fd).st_ino
            assert _holders(inode)
            zygote = it.supervisor.zygote.pid
            it.proxy.kill()
            await it.proxy.aclose()
            assert children_of(zygote) == [] or all(state == "Z" for _, state in children_of(zygote))
            assert _holders(inode) == []
        assert open_descriptors() <= before + 3  # the event loop's own

    asyncio.run(look())


def test_a_named_namespace_and_its_veth_can_be_deleted_while_proxies_of_others_live():
    """A proxy's mount namespace began as a copy of the node's, bind mounts of /run/netns among them."""
    name, outer = f"sdD-{os.getpid()}", f"sdDv{os.getpid()}"

    async def look() -> None:
        ip("netns", "add", name)
        try:
            ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            async with scene() as it:
                assert await it.run("result = 1") == 1
                ip("netns", "delete", name)
                gone = f"/sys/class/net/{outer}"
                await until(lambda: not exists(gone), within=5, what="the veth to go")
                assert it.proxy.restarts == 0
        finally:
            ip("netns", "delete", name, check=False)

    asyncio.run(look())


def _holders(inode: int) -> list[str]:
    """Processes that are in this network namespace."""
    found = []
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if link.stat().st_ino == inode:
                found.append(link.parts[2])
    return found


def test_a_child_that_is_never_told_to_enter_ends(monkeypatch):
    """The daemon may die between the fork and the first message."""
    from sidestep.proxy.control import messages
    from sidestep.proxy.control.channel import ControlChannel

    async def look() -> None:
        async with scene() as it:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            process = await it.supervisor.zygote.spawn("orphan", theirs)
            theirs.close()
            ControlChannel(ours, receives=messages.FromZygote).send(messages.Hello(1, 1, 1))  # not an Enter
            ours.close()
            assert await process.wait(deadline=5)
            process.close()
            deadline = time.monotonic() + 5
            while len(children_of(it.supervisor.zygote.pid)) > 1:
                assert time.monotonic() < deadline

    asyncio.run(look())


def test_signals_of_a_terminal_do_not_reach_zygote_and_proxies():
    async def look() -> None:
        async with scene() as it:
            for pid in (it.supervisor.zygote.pid, it.proxy.pid):
                assert os.getsid(pid) == it.supervisor.zygote.pid
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGHUP)
            assert await it.run("result = os.getpid()") == it.proxy.pid
            assert it.proxy.restarts == it.supervisor.zygote.restarts == 0

    asyncio.run(look())
