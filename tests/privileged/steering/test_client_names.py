"""An app in a real cgroup sees the client that the proxy speaks for, over IPv4, IPv6 and mapped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from sidestep.model.errors import KernelError
from sidestep.steering.client_names import ClientNames
from sidestep.steering.compiler import compile_peername
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

COMMON = ip_network("127.0.0.0/10")

APP = """
import json, socket, sys
sys.stdin.read(1)  # a socket belongs to the cgroup that its maker was in
listener = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET,
                                dualstack_ipv6=sys.argv[1] == "::")
print(listener.getsockname()[1], flush=True)
while True:
    sock, address = listener.accept()
    sock.recv(1)
    print(json.dumps([address[:2], sock.getpeername()[:2]]), flush=True)
    sock.close()
"""


def cgroup2() -> Path:
    """Where cgroup v2 is mounted."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return Path(next(line.split()[1] for line in lines if line.split()[2] == "cgroup2"))


@pytest.fixture(scope="module")
def programs():
    return asyncio.run(compile_peername())


@pytest.fixture
def cgroup():
    folder = cgroup2() / f"sidestep-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.rmdir()


@contextlib.contextmanager
def app(folder: Path, address: str):
    """An app inside the cgroup; yields (port, next line)."""
    process = subprocess.Popen(
        [sys.executable, "-c", APP, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        (folder / "cgroup.procs").write_text(str(process.pid))
        process.stdin.close()
        yield int(process.stdout.readline()), lambda: json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def dial(source: str, target: str, port: int, prepare=lambda port: None):
    """Bind, prepare (told the local port), connect, say a byte."""
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as sock:
        sock.bind((source, 0))
        prepare(sock.getsockname()[1])
        sock.connect((target, port))
        sock.sendall(b"x")
        return list(sock.getsockname()[:2])


@pytest.mark.parametrize(
    ("listen", "source", "target", "client", "shown"),
    [
        ("127.0.0.1", "127.7.8.9", "127.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("::", "127.7.8.9", "127.0.0.1", "198.51.100.7", "::ffff:198.51.100.7"),
        ("::", "::1", "::1", "2001:db8::7", "2001:db8::7"),
        ("::1", "::1", "::1", "2001:db8::7", "2001:db8::7"),
    ],
)
def test_the_app_sees_the_client(programs, cgroup, listen, source, target, client, shown):
    with app(cgroup, listen) as (port, line), contextlib.closing(ClientNames.attach(programs, str(cgroup))) as names:
        own = dial(source, target, port)
        accepted, asked = line()
        mapped = f"::ffff:{own[0]}" if listen == "::" and ":" not in target else own[0]
        assert accepted == asked == [mapped, own[1]]

        ports = []

        def name(local):
            ports.append(local)
            names.name(ip_address(source), local, port, client=ip_address(client), client_port=40001)

        dial(source, target, port, name)
        assert line() == [[shown, 40001]] * 2
        assert len(names) == 1

        names.forget(ip_address(source), ports[0], port)
        names.forget(ip_address(source), ports[0], port)
        assert len(names) == 0
        own = dial(source, target, port)
        assert line()[0][1] == own[1]


def test_another_port_of_the_app_is_another_connection(programs, cgroup):
    with (
        app(cgroup, "127.0.0.1") as (port, line),
        contextlib.closing(ClientNames.attach(programs, str(cgroup))) as names,
    ):
        client = {"client": ip_address("198.51.100.7"), "client_port": 1}
        own = dial(
            "127.7.8.9", "127.0.0.1", port, lambda local: names.name(ip_address("127.7.8.9"), local, 9, **client)
        )
        assert line()[0] == own
        names.name(ip_address("127.7.8.9"), 9, 9, **client)
        names.name(ip_address("127.7.8.9"), 9, 9, **client, maker=1)
        names.forget(ip_address("127.7.8.9"), 9, 9)  # the first one's, which is over; the port was bound again
        assert len(names) == 2
        names.forget_all(1)
        assert len(names) == 1
        names.forget_all()
        assert len(names) == 0


@pytest.mark.alone
def test_closing_leaves_nothing(programs, cgroup):
    def existing() -> set[str]:
        commands = (["bpftool", "-j", kind, "show"] for kind in ("prog", "map", "link"))
        shown = "".join(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands
        )
        return {name for name in ("sidestep_peer4", "sidestep_peer6", "sidestep_client") if name in shown}

    descriptors = len(os.listdir("/proc/self/fd"))
    names = ClientNames.attach(programs, str(cgroup))
    assert existing() == {"sidestep_peer4", "sidestep_peer6", "sidestep_client"}
    names.close()
    names.close()
    until(lambda: existing() == set(), within=5, what="the kernel to free programs and map")
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("folder", ["/nonexistent", "/tmp"])
def test_what_is_no_cgroup_is_refused_without_a_trace(programs, folder):
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KernelError):
        ClientNames.attach(programs, folder)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(("listen", "shown"), [("0.0.0.0", "127.0.0.9"), ("::", "::ffff:127.0.0.9")])
def test_without_a_name_the_app_is_shown_its_own_address_in_place_of_the_proxys(programs, cgroup, listen, shown):
    """An app may trust loopback: a name that is gone before the app accepts must not turn a stranger into a friend."""
    with app(cgroup, listen) as (port, line), contextlib.closing(ClientNames.attach(programs, str(cgroup))) as names:
        source = names.sources[random.randrange(1, 65000)]

        def name(local):
            names.name(source, local, port, client=ip_address("198.51.100.7"), client_port=40001)
            names.forget(source, local, port)

        own = dial(str(source), "127.0.0.9", port, name)
        assert line() == [[shown, own[1]]] * 2
        own = dial("127.7.8.9", "127.0.0.9", port)
        assert line()[0][0].endswith("127.7.8.9")


def test_each_attachment_has_sources_of_its_own(programs, cgroup):
    """While one daemon takes over from another, neither may take the other's connections for unnamed ones."""
    with contextlib.ExitStack() as stack:
        several = [
            stack.enter_context(contextlib.closing(ClientNames.attach(programs, str(cgroup)))) for _ in range(12)
        ]
        assert len({each.sources for each in several}) > 1
        assert all(each.sources.is_loopback and not each.sources.overlaps(COMMON) for each in several)
