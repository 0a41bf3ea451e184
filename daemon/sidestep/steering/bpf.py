"""The twelve commands of bpf(2) that steering needs, through ctypes. Every function raises KernelError.

Kernels before 5.11 refuse a map or program with EPERM when RLIMIT_MEMLOCK is exhausted. The limit is then lifted and
the call made once more; where that does not help the error names the limit (`locked_memory`).

The attribute structures mirror `union bpf_attr` (include/uapi/linux/bpf.h); the kernel accepts a shorter structure than
its own and takes the rest as zero. Every descriptor that bpf(2) returns is close-on-exec. Objects that are not pinned
live as long as their descriptors, so the kernel cleans up after SIGKILL.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import platform
from ctypes import c_char, c_uint32, c_uint64

from sidestep.model.errors import BugError, KernelError
from sidestep.steering import locked_memory

PROG_TYPE_CGROUP_SOCK = 9
PROG_TYPE_CGROUP_SOCK_ADDR = 18
PROG_TYPE_SK_LOOKUP = 30
ATTACH_INET4_CONNECT = 10
ATTACH_INET6_CONNECT = 11
ATTACH_UDP4_SENDMSG = 14
ATTACH_UDP6_SENDMSG = 15
ATTACH_GETPEERNAME4 = 29
ATTACH_GETPEERNAME6 = 30
ATTACH_INET_SOCK_RELEASE = 34
ATTACH_SK_LOOKUP = 36

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_OBJECT_NAME = 16
_MOST_PROGRAMS, _MOST_MAPS = 64, 64
"""Programs of one namespace (the kernel attaches no more of a kind) and maps of one program that are looked at."""
_LOG_SIZE = 64 * 1024
_LICENSE = b"Apache-2.0"  # no helper of the program is reserved to the GPL


class Command(enum.IntEnum):
    """`enum bpf_cmd`, the part in use."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    LINK_CREATE = 28
    LINK_DETACH = 34


_CHARGED = frozenset({Command.MAP_CREATE, Command.PROG_LOAD})
"""Commands whose memory kernels before 5.11 count against RLIMIT_MEMLOCK."""


class _MapCreate(ctypes.Structure):
    _fields_ = (
        ("map_type", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("inner_map_fd", c_uint32),
        ("numa_node", c_uint32),
        ("map_name", c_char * _OBJECT_NAME),
    )


class _MapElement(ctypes.Structure):
    _fields_ = (
        ("map_fd", c_uint32),
        ("padding", c_uint32),
        ("key", c_uint64),
        ("value", c_uint64),
        ("flags", c_uint64),
    )


class _ProgLoad(ctypes.Structure):
    _fields_ = (
        ("prog_type", c_uint32),
        ("insn_cnt", c_uint32),
        ("insns", c_uint64),
        ("license", c_uint64),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_uint64),
        ("kern_version", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_name", c_char * _OBJECT_NAME),
        ("prog_ifindex", c_uint32),
        ("expected_attach_type", c_uint32),
    )


class _LinkCreate(ctypes.Structure):
    _fields_ = (
        ("prog_fd", c_uint32),
        ("target_fd", c_uint32),
        ("attach_type", c_uint32),
        ("flags", c_uint32),
    )


class _LinkDetach(ctypes.Structure):
    _fields_ = (("link_fd", c_uint32),)


class _InfoByFd(ctypes.Structure):
    _fields_ = (
        ("bpf_fd", c_uint32),
        ("info_len", c_uint32),
        ("info", c_uint64),
    )


class _ProgQuery(ctypes.Structure):
    _fields_ = (
        ("target_fd", c_uint32),
        ("attach_type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_uint64),
        ("prog_cnt", c_uint32),
    )


class _ById(ctypes.Structure):
    _fields_ = (
        ("id", c_uint32),
        ("next_id", c_uint32),
        ("open_flags", c_uint32),
    )


class _ProgInfo(ctypes.Structure):
    """`struct bpf_prog_info` up to the name."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_char * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * _OBJECT_NAME),
    )


class _MapInfo(ctypes.Structure):
    """`struct bpf_map_info` up to the name."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * _OBJECT_NAME),
    )


class LinkInfo(ctypes.Structure):
    """`struct bpf_link_info` of a network namespace link. `netns_ino` is 0 once it is detached or the netns gone."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("padding", c_uint32),  # the union that follows is aligned to 8 bytes
        ("netns_ino", c_uint32),
        ("attach_type", c_uint32),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: Command, attributes: ctypes.Structure, *, doing: str) -> int:
    machine = platform.machine()
    if machine not in _SYSCALL:
        raise KernelError(f"bpf({command.name})", errno.ENOSYS, doing=f"{doing} on {machine}")
    number = _SYSCALL[machine]
    result = _syscall(number, command, attributes)
    if result < 0 and ctypes.get_errno() == errno.EPERM and command in _CHARGED and locked_memory.is_charged():
        locked_memory.lift()
        result = _syscall(number, command, attributes)
        if result < 0 and locked_memory.is_limited():
            raise KernelError(f"bpf({command.name})", ctypes.get_errno(), doing=doing, hint=locked_memory.shortage())
    if result < 0:
        raise KernelError(f"bpf({command.name})", ctypes.get_errno(), doing=doing)
    return result


def _syscall(number: int, command: Command, attributes: ctypes.Structure) -> int:
    return int(_libc.syscall(number, int(command), ctypes.byref(attributes), ctypes.sizeof(attributes)))


def _pointer(data: ctypes.Array[c_char]) -> int:
    return ctypes.addressof(data)


def object_name(name: str) -> str:
    """A name as the kernel keeps it."""
    return name[: _OBJECT_NAME - 1]


def map_create(*, name: str, map_type: int, key_size: int, value_size: int, entries: int, flags: int) -> int:
    """Create a map; the descriptor is the caller's. Sizes in bytes."""
    attributes = _MapCreate(
        map_type=map_type,
        key_size=key_size,
        value_size=value_size,
        max_entries=entries,
        map_flags=flags,
        map_name=object_name(name).encode(),
    )
    return _bpf(Command.MAP_CREATE, attributes, doing=f"creating the map {name}")


def map_update(map_fd: int, key: bytes, value: bytes, *, doing: str) -> None:
    """Set an element, whether or not it exists."""
    key_buffer, value_buffer = (
        ctypes.create_string_buffer(key, len(key)),
        ctypes.create_string_buffer(value, len(value)),
    )
    attributes = _MapElement(map_fd=map_fd, key=_pointer(key_buffer), value=_pointer(value_buffer))
    _bpf(Command.MAP_UPDATE_ELEM, attributes, doing=doing)


def map_delete(map_fd: int, key: bytes, *, doing: str) -> None:
    """Delete an element. Raises KernelError with ENOENT when there is none."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    _bpf(Command.MAP_DELETE_ELEM, _MapElement(map_fd=map_fd, key=_pointer(key_buffer)), doing=doing)


def map_lookup(map_fd: int, key: bytes, *, value_size: int, doing: str) -> bytes:
    """Read an element of `value_size` bytes (of a per-CPU map: 8 bytes times the possible CPUs)."""
    key_buffer, value_buffer = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value_size)
    attributes = _MapElement(map_fd=map_fd, key=_pointer(key_buffer), value=_pointer(value_buffer))
    _bpf(Command.MAP_LOOKUP_ELEM, attributes, doing=doing)
    return value_buffer.raw


def map_keys(map_fd: int, *, key_size: int, limit: int, doing: str) -> set[bytes]:
    """The keys of a hash map that nobody else changes meanwhile; at most `limit` steps are made."""
    keys: set[bytes] = set()
    following = ctypes.create_string_buffer(key_size)
    attributes = _MapElement(map_fd=map_fd, key=0, value=_pointer(following))
    for _ in range(limit):
        try:
            _bpf(Command.MAP_GET_NEXT_KEY, attributes, doing=doing)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return keys
            raise
        keys.add(following.raw)
        current = ctypes.create_string_buffer(following.raw, key_size)
        attributes.key = _pointer(current)
    raise BugError(f"more than {limit} keys in a map while {doing}")


def prog_load(
    *, name: str, instructions: bytes, kind: int = PROG_TYPE_SK_LOOKUP, attach_type: int = ATTACH_SK_LOOKUP
) -> int:
    """Load a program; the descriptor is the caller's. A refusal carries the verifier's last line."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(_LICENSE)
    attributes = _ProgLoad(
        prog_type=kind,
        insn_cnt=len(instructions) // 8,
        insns=_pointer(code),
        license=_pointer(licence),
        prog_name=name.encode()[: _OBJECT_NAME - 1],
        expected_attach_type=attach_type,
    )
    doing = f"loading the program {name}"
    try:
        return _bpf(Command.PROG_LOAD, attributes, doing=doing)
    except KernelError as error:
        if error.errno not in {errno.EACCES, errno.EINVAL}:
            raise
    log = ctypes.create_string_buffer(_LOG_SIZE)
    attributes.log_level, attributes.log_size, attributes.log_buf = 1, _LOG_SIZE, _pointer(log)
    try:
        return _bpf(Command.PROG_LOAD, attributes, doing=doing)
    except KernelError as error:
        lines = [line for line in log.value.decode(errors="replace").splitlines() if line and "processed " not in line]
        raise KernelError(error.call, error.errno, doing=f"{doing} ({lines[-1] if lines else 'no log'})") from error


def link_create(prog_fd: int, target_fd: int, *, attach_type: int = ATTACH_SK_LOOKUP) -> int:
    """Attach to a network namespace or cgroup for as long as the returned descriptor is open somewhere."""
    attributes = _LinkCreate(prog_fd=prog_fd, target_fd=target_fd, attach_type=attach_type)
    where = "network namespace" if attach_type == ATTACH_SK_LOOKUP else "cgroup"
    return _bpf(Command.LINK_CREATE, attributes, doing=f"attaching the program to a {where}")


def link_detach(link_fd: int) -> None:
    """Detach at once; closing the last descriptor detaches with a delay."""
    _bpf(Command.LINK_DETACH, _LinkDetach(link_fd=link_fd), doing="detaching the program")


def link_info(link_fd: int) -> LinkInfo:
    """The kernel's description of a link."""
    info = LinkInfo()
    _describe(link_fd, info, doing="asking about the link")
    return info


def _describe(fd: int, info: ctypes.Structure, *, doing: str) -> None:
    attributes = _InfoByFd(bpf_fd=fd, info_len=ctypes.sizeof(info), info=ctypes.addressof(info))
    _bpf(Command.OBJ_GET_INFO_BY_FD, attributes, doing=doing)


def link_target(link_fd: int) -> int:
    """The low half of the number of a link's cgroup or network namespace; 0 once it is detached or the target gone."""
    return int(link_info(link_fd).netns_ino)


def programs_attached(netns_fd: int) -> int:
    """The number of sk_lookup programs that are attached to a network namespace, by whomever."""
    attributes = _ProgQuery(target_fd=netns_fd, attach_type=ATTACH_SK_LOOKUP)
    _bpf(Command.PROG_QUERY, attributes, doing="asking which programs are attached to a network namespace")
    return int(attributes.prog_cnt)


def attached_ids(netns_fd: int) -> list[int]:
    """The ids of these programs, in the order in which they run. Raises KernelError."""
    ids = (c_uint32 * _MOST_PROGRAMS)()
    attributes = _ProgQuery(
        target_fd=netns_fd, attach_type=ATTACH_SK_LOOKUP, prog_ids=ctypes.addressof(ids), prog_cnt=_MOST_PROGRAMS
    )
    _bpf(Command.PROG_QUERY, attributes, doing="asking which programs are attached to a network namespace")
    return list(ids[: attributes.prog_cnt])


def prog_by_id(number: int) -> int:
    """A descriptor of a loaded program, which is the caller's. Raises KernelError, with ENOENT when it is gone."""
    return _bpf(Command.PROG_GET_FD_BY_ID, _ById(id=number), doing="opening a program")


def map_by_id(number: int) -> int:
    """The same of a map."""
    return _bpf(Command.MAP_GET_FD_BY_ID, _ById(id=number), doing="opening a map")


def prog_info(prog_fd: int) -> tuple[str, list[int]]:
    """The name of a program, and the ids of its maps."""
    ids = (c_uint32 * _MOST_MAPS)()
    info = _ProgInfo(nr_map_ids=_MOST_MAPS, map_ids=ctypes.addressof(ids))
    _describe(prog_fd, info, doing="asking about a program")
    return info.name.decode(errors="replace"), list(ids[: min(info.nr_map_ids, _MOST_MAPS)])


def map_name(map_fd: int) -> str:
    """The name of a map."""
    info = _MapInfo()
    _describe(map_fd, info, doing="asking about a map")
    return str(info.name.decode(errors="replace"))


def possible_cpus() -> int:
    """CPUs the kernel keeps per-CPU values for (Documentation/admin-guide/cputopology.rst)."""
    fd = os.open("/sys/devices/system/cpu/possible", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096).decode()
    finally:
        os.close(fd)
    return count_cpus(text)


def count_cpus(text: str) -> int:
    """CPUs in a kernel CPU list such as `0-3,8`. Raises BugError for anything else."""
    total = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise BugError(f"{text.strip()!r} is not a list of CPUs")
        total += int(last or first) - int(first) + 1
    return total
