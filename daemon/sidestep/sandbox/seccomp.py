"""A seccomp filter, by default that of a pod proxy: an allow-list, as classic BPF (seccomp(2), linux/filter.h).

The program has one block per system call: `if nr == N`, tests of arguments that refuse with EPERM, then ALLOW. Kernels
from 5.11 on keep a bitmap of the calls whose verdict does not depend on arguments, and do not run the filter for them.
Older kernels run the linear program, which has the most frequent calls first.

Arguments of type `int` are compared by their low 32 bits, because the kernel reads no more.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping

import msgspec

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.sandbox.syscalls import ALLOWED, ARCHITECTURES, CLONE, CLONE3, FATAL, Numbers

ALLOW = 0x7FFF0000
KILL = 0x80000000
REFUSE = 0x00050000 | errno.EPERM
ABSENT = 0x00050000 | errno.ENOSYS
"""SECCOMP_RET_ALLOW, _KILL_PROCESS, _ERRNO | EPERM, _ERRNO | ENOSYS."""

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_AT_LEAST = 0x15, 0x35
_X32_BIT = 0x40000000
_SECCOMP_SET_MODE_FILTER, _FILTER_FLAG_SPEC_ALLOW = 1, 4
_ALL = 0xFFFFFFFF


class Only(msgspec.Struct, frozen=True):
    """An argument must have one of these values after the mask; with `high` the upper 32 bits are compared instead."""

    argument: int
    values: tuple[int, ...]
    mask: int = _ALL
    high: bool = False


class Except(msgspec.Struct, frozen=True):
    """Two arguments must not be `first` together with one of `second`."""

    argument: int
    first: int
    second: tuple[int, ...]


_PROT_EXEC = 4
_MAP_TYPE, _MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS = 0x0F, 1, 2, 0x20
_FCNTL = (
    fcntl.F_DUPFD,
    fcntl.F_DUPFD_CLOEXEC,
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
    fcntl.F_SETFL,
    fcntl.F_ADD_SEALS,
    fcntl.F_GET_SEALS,
    1031,  # F_SETPIPE_SZ; Python names it since 3.10 only where the C library does
    1032,  # F_GETPIPE_SZ
)
_IOCTL = (0x5421, 0x541B, 0x5411, 0x5451, 0x5450, 0x5401)
"""FIONBIO, FIONREAD, TIOCOUTQ, FIOCLEX, FIONCLEX, TCGETS. Others would show the node's interfaces through the control
socket, which belongs to the node's network namespace."""
_SOL_RAW = 255
_IPV6_HDRINCL = 36
_SOCKET_FILTERS = (26, 50, 51, 52)
"""SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF."""

CONDITIONS: dict[str, tuple[Only | Except, ...]] = {
    "socket": (
        Only(0, (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)),
        Only(1, (socket.SOCK_STREAM, socket.SOCK_DGRAM), mask=_ALL & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)),
        Only(2, (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)),
    ),
    "socketpair": (Only(0, (socket.AF_UNIX,)),),
    # A raw socket (for answers to datagrams, `netns.datagrams`) must not write IP headers: it could forge any source.
    "setsockopt": (
        Except(1, socket.SOL_SOCKET, _SOCKET_FILTERS),
        Except(1, socket.IPPROTO_IP, (socket.IP_HDRINCL,)),
        Except(1, socket.IPPROTO_IPV6, (_IPV6_HDRINCL,)),
        Except(1, _SOL_RAW, (_IPV6_HDRINCL,)),
    ),
    # RLIMIT_DATA does not bound shared memory: only what the daemon handed over can be shared, and nothing be made.
    "mmap": (
        Only(2, (0,), mask=_PROT_EXEC),
        Only(3, (_MAP_PRIVATE, _MAP_PRIVATE | _MAP_ANONYMOUS, _MAP_SHARED), mask=_MAP_TYPE | _MAP_ANONYMOUS),
    ),
    "mprotect": (Only(2, (0,), mask=_PROT_EXEC),),
    "openat": (Only(2, (0,), mask=os.O_ACCMODE | os.O_CREAT | os.O_TRUNC),),
    "fcntl": (Only(1, _FCNTL),),
    "ioctl": (Only(1, _IOCTL),),
    "prlimit64": (Only(0, (0,)), Only(2, (0,)), Only(2, (0,), high=True)),
}
"""What the arguments of an allowed call must satisfy: every condition of its row."""


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one `struct sock_filter`."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _load(argument: int, *, high: bool = False) -> bytes:
    """Load half an argument; `struct seccomp_data` has them from byte 16, little-endian on both architectures."""
    return _instruction(_LOAD, 16 + 8 * argument + (4 if high else 0))


def _test(condition: Only | Except) -> bytes:
    """Return instructions that refuse, or continue after themselves."""
    refuse = _instruction(_RETURN, REFUSE)
    if isinstance(condition, Only):
        code = _load(condition.argument, high=condition.high)
        if condition.mask != _ALL:
            code += _instruction(_AND, condition.mask)
        count = len(condition.values)
        for index, value in enumerate(condition.values):
            code += _instruction(_JUMP_EQUAL, value, if_true=count - index)
        return code + refuse
    count = len(condition.second)
    code = _load(condition.argument) + _instruction(_JUMP_EQUAL, condition.first, if_false=count + 3)
    code += _load(condition.argument + 1)
    for index, value in enumerate(condition.second):
        code += _instruction(_JUMP_EQUAL, value, if_true=count - index)
    return code + _instruction(0x05, 1) + refuse


def _block(number: int, tests: Iterable[bytes], verdict: int) -> bytes:
    body = b"".join(tests) + _instruction(_RETURN, verdict)
    return _instruction(_JUMP_EQUAL, number, if_false=len(body) // 8) + body


def _prologue(machine: str) -> tuple[int, list[bytes]]:
    """Return the architecture's index in `Numbers`, and instructions that leave the call's number to be compared."""
    if machine not in ARCHITECTURES:
        raise ConfigurationError("only x86_64 and aarch64 are supported", subject="machine", value=machine)
    index, audit = ARCHITECTURES[machine]
    return index, [
        _instruction(_LOAD, 4),
        _instruction(_JUMP_EQUAL, audit, if_true=1),
        _instruction(_RETURN, KILL),
        _instruction(_LOAD, 0),
        _instruction(_JUMP_AT_LEAST, _X32_BIT, if_false=1),
        _instruction(_RETURN, KILL),
    ]


def assemble(
    machine: str,
    *,
    allowed: Mapping[str, Numbers] = ALLOWED,
    conditions: Mapping[str, tuple[Only | Except, ...]] = CONDITIONS,
) -> bytes:
    """Return the program for an architecture as an array of `struct sock_filter`: that of a pod proxy, or one that
    allows other calls. Raises ConfigurationError."""
    index, program = _prologue(machine)
    for table, verdict in ((allowed, ALLOW), (FATAL, KILL)):
        for name, numbers in table.items():
            number = numbers[index]
            if number is not None:
                tests = [_test(condition) for condition in conditions.get(name, ())] if verdict == ALLOW else []
                program.append(_block(number, tests, verdict))
    program.append(_instruction(_RETURN, REFUSE))
    return b"".join(program)


def assemble_denying(machine: str, clone_flags: int) -> bytes:
    """Return a program for a process that runs somebody else's code: a deny-list. Raises ConfigurationError.

    It has no `FATAL` call but execve, makes sockets of unix only, and threads without these flags of clone(2). clone3
    is said not to exist, because its flags are in memory; the C library uses clone then.
    """
    index, program = _prologue(machine)
    for name, numbers in FATAL.items():
        number = numbers[index]
        if number is not None and name not in ("execve", "seccomp"):
            program.append(_block(number, (), KILL))
    unix_only, no_namespaces = Only(0, (socket.AF_UNIX,)), Only(0, (0,), mask=clone_flags)
    for numbers, tests, verdict in (
        (ALLOWED["socket"], [_test(unix_only)], ALLOW),
        (CLONE, [_test(no_namespaces)], ALLOW),
        (CLONE3, [], ABSENT),
    ):
        number = numbers[index]
        if number is not None:
            program.append(_block(number, tests, verdict))
    program.append(_instruction(_RETURN, ALLOW))
    return b"".join(program)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Install the filter for this process, for good; no_new_privs must be set. Raises KernelError.

    With SPEC_ALLOW kernels before 5.16 do not switch on the speculation mitigations that make every branch slower. They
    are not needed: the process holds one pod's secrets only, and runs no code of that pod.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    index, _ = ARCHITECTURES[os.uname().machine]
    number = FATAL["seccomp"][index]
    descriptor = _Program(len(program) // 8, program)
    result = libc.syscall(
        ctypes.c_long(number or 0),
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_FILTER_FLAG_SPEC_ALLOW),
        ctypes.byref(descriptor),
    )
    if result != 0:
        raise KernelError("seccomp", ctypes.get_errno(), doing="installing the filter")
