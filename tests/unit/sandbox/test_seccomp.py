"""The seccomp program, run by a small interpreter of classic BPF: every call, every condition, both architectures."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from pathlib import Path

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.sandbox import seccomp
from sidestep.sandbox.seccomp import ALLOW, KILL, REFUSE, assemble
from sidestep.sandbox.syscalls import ALLOWED, ARCHITECTURES, FATAL

MACHINES = tuple(ARCHITECTURES)
DENIED = {
    # name: (x86_64, aarch64), refused with EPERM, because neither table has them
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "listen": (50, 201),
    "prctl": (157, 167),
    "setuid": (105, 146),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "fchmodat": (268, 53),
    "shmget": (29, 194),
    "unknown": (9999, 9999),
}


def verdict(program: bytes, *, number: int, arguments: tuple[int, ...] = (), audit: int) -> int:
    """Run a program on one `struct seccomp_data`."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, audit, 0, *(a & 0xFFFFFFFFFFFFFFFF for a in padded))
    at, accumulator = 0, 0
    for _ in range(4096):
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")
    raise AssertionError("it does not end")


class Filter:
    """A program for one machine."""

    def __init__(self, machine: str) -> None:
        self.index, self.audit = ARCHITECTURES[machine]
        self.program = assemble(machine)

    def __call__(self, name: str, *arguments: int) -> int:
        number = (ALLOWED | FATAL | DENIED)[name][self.index]
        assert number is not None
        return verdict(self.program, number=number, arguments=arguments, audit=self.audit)


@pytest.fixture(params=MACHINES)
def judge(request: pytest.FixtureRequest) -> Filter:
    return Filter(request.param)


def test_every_row_has_its_verdict(judge):
    for name, numbers in ALLOWED.items():
        if numbers[judge.index] is not None and name not in seccomp.CONDITIONS:
            assert judge(name) == ALLOW, name
    for name, numbers in FATAL.items():
        if numbers[judge.index] is not None:
            assert judge(name) == KILL, name
    for name in DENIED:
        assert judge(name) == REFUSE, name
    assert REFUSE & 0xFFFF == errno.EPERM


def test_another_architecture_and_x32_end_the_process(judge):
    assert verdict(judge.program, number=0, audit=0x40000003) == KILL
    assert verdict(judge.program, number=0x40000000, audit=judge.audit) == KILL
    assert verdict(judge.program, number=-1, audit=judge.audit) == KILL


F, S = fcntl, socket


@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("socket", (S.AF_INET, S.SOCK_STREAM, 0), True),
        ("socket", (S.AF_INET6, S.SOCK_STREAM | S.SOCK_NONBLOCK | S.SOCK_CLOEXEC, S.IPPROTO_TCP), True),
        ("socket", (S.AF_INET, S.SOCK_DGRAM, S.IPPROTO_UDP), True),
        ("socket", (S.AF_UNIX, S.SOCK_STREAM, 0), True),
        ("socket", (S.AF_INET, S.SOCK_RAW, 0), False),
        ("socket", (S.AF_INET, S.SOCK_DGRAM, S.IPPROTO_ICMP), False),
        ("socket", (S.AF_INET, S.SOCK_STREAM, 132), False),
        ("socket", (S.AF_INET, S.SOCK_STREAM | 0x10, 0), False),
        ("socket", (S.AF_NETLINK, S.SOCK_RAW, 0), False),
        ("socket", (S.AF_PACKET, S.SOCK_DGRAM, 0), False),
        ("socket", (S.AF_INET | 1 << 32, S.SOCK_STREAM, 0), True),  # the kernel takes an int
        ("socketpair", (S.AF_UNIX, S.SOCK_STREAM, 0), True),
        ("socketpair", (S.AF_INET, S.SOCK_STREAM, 0), False),
        ("setsockopt", (3, S.SOL_SOCKET, S.SO_RCVLOWAT), True),
        ("setsockopt", (3, S.SOL_SOCKET, S.SO_LINGER), True),
        ("setsockopt", (3, S.SOL_SOCKET, 26), False),
        ("setsockopt", (3, S.SOL_SOCKET, 50), False),
        ("setsockopt", (3, S.SOL_SOCKET, 51), False),
        ("setsockopt", (3, S.SOL_SOCKET, 52), False),
        ("setsockopt", (3, S.IPPROTO_IPV6, 26), True),
        ("setsockopt", (3, S.IPPROTO_IPV6, 50), True),
        ("mmap", (0, 4096, 3, 0x22), True),
        ("mmap", (0, 4096, 3, 0x20022), True),
        ("mmap", (0, 4096, 7, 0x22), False),
        ("mmap", (0, 4096, 3, 0x21), False),
        ("mmap", (0, 4096, 3, 0x01), True),
        ("mmap", (0, 4096, 7, 0x01), False),
        ("mmap", (0, 4096, 3, 0x02), True),
        ("mmap", (0, 4096, 3, 0x23), False),
        ("setsockopt", (3, 0, 3), False),
        ("setsockopt", (3, 0, 8), True),
        ("setsockopt", (3, 41, 36), False),
        ("setsockopt", (3, 255, 36), False),
        ("mprotect", (0, 4096, 1), True),
        ("mprotect", (0, 4096, 4), False),
        ("openat", (-100, 0, os.O_RDONLY | os.O_CLOEXEC), True),
        ("openat", (-100, 0, os.O_RDONLY | os.O_DIRECTORY), True),
        ("openat", (-100, 0, os.O_RDWR), False),
        ("openat", (-100, 0, os.O_WRONLY | os.O_CREAT), False),
        ("openat", (-100, 0, os.O_RDONLY | os.O_TRUNC), False),
        ("fcntl", (3, F.F_SETFL, os.O_NONBLOCK), True),
        ("fcntl", (3, F.F_DUPFD_CLOEXEC, 0), True),
        ("fcntl", (3, 1031, 65536), True),
        ("fcntl", (3, F.F_SETOWN, 1), False),
        ("ioctl", (3, 0x5421), True),
        ("ioctl", (3, 0x541B), True),
        ("ioctl", (3, 0x8912), False),
        ("ioctl", (3, 0x894C), False),
        ("ioctl", (3, 0x5412), False),
        ("prlimit64", (0, 7, 0, 1), True),
        ("prlimit64", (0, 7, 1, 0), False),
        ("prlimit64", (0, 7, 1 << 32, 0), False),
        ("prlimit64", (1, 7, 0, 1), False),
    ],
)
def test_conditions_on_arguments(judge, name, arguments, allowed):
    assert judge(name, *arguments) == (ALLOW if allowed else REFUSE)


def test_every_condition_belongs_to_an_allowed_call():
    assert set(seccomp.CONDITIONS) <= set(ALLOWED)
    assert not set(ALLOWED) & set(FATAL)


def test_numbers_are_unique_and_the_program_fits(judge):
    numbers = [row[judge.index] for row in (ALLOWED | FATAL).values() if row[judge.index] is not None]
    assert len(numbers) == len(set(numbers))
    assert len(judge.program) % 8 == 0
    assert len(judge.program) // 8 <= 4096


@pytest.mark.parametrize(
    ("index", "path"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_are_those_of_the_kernel_headers_where_there_are_any(index, path):
    header = Path(path)
    if not header.exists():  # Not every machine that runs the tests compiles C for every architecture.
        return
    defined = {
        name: int(value) for name, value in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    }
    defined.setdefault("newfstatat", defined.get("fstatat", 79))
    for name, numbers in (ALLOWED | FATAL).items():
        if numbers[index] is not None:
            assert defined.get(name, numbers[index]) == numbers[index], name


def test_an_unknown_machine_is_refused():
    with pytest.raises(ConfigurationError, match="riscv64"):
        assemble("riscv64")
