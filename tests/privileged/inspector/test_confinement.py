"""What code that runs inside an inspector can reach: nothing but its socket."""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import subprocess
import sys

import pytest

from sidestep.inspector import confinement
from sidestep.sandbox.syscalls import ARCHITECTURES, FATAL

UID = 2_000_000_001
MEMORY = 64 * 1024 * 1024
PROGRAM = """
import ctypes, errno, json, mmap, os, socket, sys, time
from sidestep.inspector import confinement

sock = socket.socket(fileno=int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
program = confinement.program()
tree = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
if sys.argv[4] == "forked":
    confinement.enclose()
    confined = confinement.Confinement(uid=int(sys.argv[2]), memory=int(sys.argv[3]))
    confinement.lock(confined, socket_fd=sock.fileno(), filter_program=program)
else:
    if sys.argv[4] == "user":
        os.setgroups([])
        os.setresgid(*[int(sys.argv[2])] * 3)
        os.setresuid(*[int(sys.argv[2])] * 3)
    confinement.alone(memory=int(sys.argv[3]), socket_fd=sock.fileno())
told = {}
sock.send(b"locked")
while code := sock.recv(65536):
    told = {}
    try:
        exec(code)
    except OSError as error:
        told["errno"] = error.errno
    except MemoryError:
        told["errno"] = errno.ENOMEM
    sock.send(json.dumps(told).encode())
"""


class Confined:
    """A locked process that runs what it is sent.

    It is locked as one that a zygote `forked`, or as one of a command line, which is root's ("root") or another user's.
    """

    def __init__(self, uid=UID, how="forked"):
        self.is_user = how == "user"
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(30)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(uid), str(MEMORY), how],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        assert self.sock.recv(100) == b"locked"

    def run(self, code):
        """Run code that puts what it finds into `told`; what it told, None if that ended the process."""
        self.sock.send(code.encode())
        answer = self.sock.recv(65536)
        return json.loads(answer) if answer else None

    def close(self):
        """End it."""
        self.sock.close()
        self.process.kill()
        self.process.wait()

    def status(self):
        """The fields of /proc/PID/status."""
        with open(f"/proc/{self.process.pid}/status") as lines:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(params=["root", "user"])
def alone(request):
    made = Confined(how=request.param)
    yield made
    made.close()


@pytest.fixture
def confined():
    made = Confined()
    yield made
    made.close()


def test_no_privilege_is_left(confined):
    status = confined.status()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["Uid"].split() == status["Gid"].split() == [str(UID)] * 4
    assert (status["Groups"], status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("", "1", "2", "1")


def test_the_only_descriptors_are_its_socket_and_the_null_device(confined):
    folder = f"/proc/{confined.process.pid}/fd"
    named = {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    assert sorted(named.values()) == ["/dev/null", "/dev/null", "/dev/null", named[max(named, key=int)]]
    assert named[max(named, key=int)].startswith("socket:")


def test_network_root_and_mounts_are_its_own_and_empty(confined):
    pid = confined.process.pid
    for kind in ("net", "mnt", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert os.listdir(f"/proc/{pid}/root") == []
    with open(f"/proc/{pid}/net/dev") as lines:
        assert [line.split(":")[0].strip() for line in lines][2:] == ["lo"]
    with open(f"/proc/{pid}/net/route") as lines:
        assert len(lines.readlines()) <= 1


def test_its_priority_is_lower(confined):
    assert os.getpriority(os.PRIO_PROCESS, confined.process.pid) == min(
        19, os.getpriority(os.PRIO_PROCESS, 0) + confinement.NICE
    )


def test_one_of_a_command_line_has_no_privilege_either(alone):
    status = alone.status()
    for name in ("CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["Uid"].split() == [str(UID if alone.is_user else confinement.NOBODY)] * 4
    assert (status["Groups"], status["NoNewPrivs"], status["Seccomp"]) == ("", "1", "2")
    folder = f"/proc/{alone.process.pid}/fd"
    named = sorted(os.readlink(f"{folder}/{name}") for name in os.listdir(folder))
    assert named[:3] == ["/dev/null"] * 3
    assert [each.partition(":")[0] for each in named[3:]] == ["socket"]


REFUSED = [
    "os.open('/', os.O_RDONLY)",
    "os.open('/etc/passwd', os.O_RDONLY)",
    "os.open('/proc/self/mem', os.O_RDWR)",
    "os.stat('/')",
    "os.listdir('/')",
    "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
    "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "socket.socketpair()",
    "os.fork()",
    "os.kill(os.getppid(), 0)",
    "os.kill(1, 9)",
    "os.memfd_create('x')",
    "os.pipe()",
    "os.dup(0)",
    "os.setuid(0)",
    "os.chdir('/')",
    "os.nice(-1)",
    "os.pidfd_open(os.getppid())",
    "mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC)",
    "mmap.mmap(-1, 4096, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)",
]


@pytest.mark.parametrize("code", REFUSED)
def test_it_can_do_nothing_else(confined, code):
    assert confined.run(code)["errno"] in {errno.EPERM, errno.EACCES, errno.EBADF}


def test_nor_can_one_of_a_command_line(alone):
    told = {code: alone.run(code) for code in REFUSED}
    assert not [each for each in told.items() if each[1].get("errno") not in {errno.EPERM, errno.EACCES, errno.EBADF}]
    assert alone.run(f"told['size'] = len(bytearray({2 * MEMORY}))") == {"errno": errno.ENOMEM}


def test_a_page_cannot_be_made_executable(confined):
    code = """
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
told["result"] = libc.mprotect(ctypes.c_void_p(address), 4096, 5)
told["errno"] = ctypes.get_errno()
"""
    told = Confined.run(confined, code.replace("mmap.mmap(-1, 4096)", "mmap.mmap(-1, 4096, mmap.MAP_PRIVATE)"))
    assert told == {"result": -1, "errno": errno.EPERM}


def test_its_memory_is_bounded(confined):
    assert confined.run(f"told['size'] = len(bytearray({2 * MEMORY}))") == {"errno": errno.ENOMEM}
    assert confined.run("told['alive'] = True") == {"alive": True}


@pytest.mark.parametrize("name", sorted(FATAL))
def test_what_only_an_attacker_calls_ends_it(name):
    number = FATAL[name][ARCHITECTURES[platform.machine()][0]]
    if number is None:
        return  # The architecture lacks the call.
    confined = Confined()
    try:
        assert confined.run(f"libc.syscall({number}, 0, 0, 0, 0, 0)") is None
        assert confined.process.wait(10) < 0
    finally:
        confined.close()
