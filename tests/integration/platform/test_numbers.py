"""Numbers of the kernel that we write down, against libseccomp's tables and the kernel's own headers."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from sidestep.sandbox.syscalls import ALLOWED, ARCHITECTURES, FATAL
from sidestep.steering import bpf, headers
from tests.integration.platform.c_constants import Constants

LIBSECCOMP = """
import json, seccomp, sys
found = {}
for machine, arch in (("x86_64", seccomp.Arch.X86_64), ("aarch64", seccomp.Arch.AARCH64)):
    numbers = {name: seccomp.resolve_syscall(arch, name) for name in sys.argv[1:]}
    found[machine] = [int(arch) & 0xFFFFFFFF, numbers]
print(json.dumps(found))
"""
"""For the distribution's interpreter, which has libseccomp's own binding (Debian: python3-seccomp)."""

UAPI = (
    "uapi/asm-generic/errno-base.h", "uapi/asm-generic/fcntl.h", "uapi/asm-generic/ioctls.h",
    "uapi/asm-generic/mman-common.h", "uapi/asm-generic/socket.h", "uapi/linux/audit.h", "uapi/linux/bpf.h",
    "uapi/linux/bpf_common.h", "uapi/linux/capability.h", "uapi/linux/elf-em.h", "uapi/linux/fcntl.h",
    "uapi/linux/in.h", "uapi/linux/in6.h", "uapi/linux/inotify.h", "uapi/linux/mman.h", "uapi/linux/mount.h",
    "uapi/linux/netlink.h", "uapi/linux/prctl.h", "uapi/linux/sched.h", "uapi/linux/seccomp.h",
    "uapi/linux/securebits.h",
)  # fmt: skip

OURS = {
    # module: {our name: the header's}
    "sidestep.steering.bpf": {
        "PROG_TYPE_CGROUP_SOCK_ADDR": "BPF_PROG_TYPE_CGROUP_SOCK_ADDR",
        "PROG_TYPE_SK_LOOKUP": "BPF_PROG_TYPE_SK_LOOKUP",
        "ATTACH_GETPEERNAME4": "BPF_CGROUP_INET4_GETPEERNAME",
        "ATTACH_GETPEERNAME6": "BPF_CGROUP_INET6_GETPEERNAME",
        "ATTACH_SK_LOOKUP": "BPF_SK_LOOKUP",
        "_OBJECT_NAME": "BPF_OBJ_NAME_LEN",
    },
    "sidestep.steering.layout": {
        "MAP_TYPE_HASH": "BPF_MAP_TYPE_HASH",
        "MAP_TYPE_PERCPU_ARRAY": "BPF_MAP_TYPE_PERCPU_ARRAY",
        "MAP_TYPE_SOCKHASH": "BPF_MAP_TYPE_SOCKHASH",
        "BPF_F_NO_PREALLOC": "BPF_F_NO_PREALLOC",
    },
    "sidestep.steering.program": {
        "_LD_IMM64": "BPF_LD | BPF_IMM | BPF_DW",
        "_PSEUDO_MAP_FD": "BPF_PSEUDO_MAP_FD",
    },
    "sidestep.steering.headers": {"_CLONE_NEWNS": "CLONE_NEWNS", "_MS_REC": "MS_REC", "_MS_PRIVATE": "MS_PRIVATE"},
    "sidestep.steering.unprivileged": {
        "_PR_CAPBSET_READ": "PR_CAPBSET_READ",
        "_PR_CAPBSET_DROP": "PR_CAPBSET_DROP",
        "_PR_SET_NO_NEW_PRIVS": "PR_SET_NO_NEW_PRIVS",
        "_PR_CAP_AMBIENT": "PR_CAP_AMBIENT",
        "_PR_CAP_AMBIENT_CLEAR_ALL": "PR_CAP_AMBIENT_CLEAR_ALL",
        "_VERSION_3": "_LINUX_CAPABILITY_VERSION_3",
    },
    "sidestep.sandbox.capabilities": {
        "_PR_SET_DUMPABLE": "PR_SET_DUMPABLE",
        "_PR_CAPBSET_READ": "PR_CAPBSET_READ",
        "_PR_CAPBSET_DROP": "PR_CAPBSET_DROP",
        "_PR_SET_SECUREBITS": "PR_SET_SECUREBITS",
        "_PR_SET_NO_NEW_PRIVS": "PR_SET_NO_NEW_PRIVS",
        "_PR_CAP_AMBIENT": "PR_CAP_AMBIENT",
        "_PR_CAP_AMBIENT_CLEAR_ALL": "PR_CAP_AMBIENT_CLEAR_ALL",
    },
    "sidestep.sandbox.libc": {
        name: name
        for name in (
            "MS_RDONLY",
            "MS_NOSUID",
            "MS_NODEV",
            "MS_NOEXEC",
            "MS_REMOUNT",
            "MS_BIND",
            "MS_REC",
            "MS_PRIVATE",
            "CLONE_NEWNS",
            "CLONE_NEWUTS",
            "CLONE_NEWIPC",
            "CLONE_NEWNET",
        )
    },
    "sidestep.sandbox.seccomp": {
        "ALLOW": "SECCOMP_RET_ALLOW",
        "KILL": "SECCOMP_RET_KILL_PROCESS",
        "REFUSE": "SECCOMP_RET_ERRNO | EPERM",
        "_LOAD": "BPF_LD | BPF_W | BPF_ABS",
        "_AND": "BPF_ALU | BPF_AND | BPF_K",
        "_RETURN": "BPF_RET | BPF_K",
        "_JUMP_EQUAL": "BPF_JMP | BPF_JEQ | BPF_K",
        "_JUMP_AT_LEAST": "BPF_JMP | BPF_JGE | BPF_K",
        "_SECCOMP_SET_MODE_FILTER": "SECCOMP_SET_MODE_FILTER",
        "_FILTER_FLAG_SPEC_ALLOW": "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "_PROT_EXEC": "PROT_EXEC",
        "_MAP_TYPE": "MAP_TYPE",
        "_MAP_PRIVATE": "MAP_PRIVATE",
        "_IPV6_HDRINCL": "IPV6_HDRINCL",
    },
    "sidestep.netns.datagrams": {
        "_IP_PKTINFO": "IP_PKTINFO",
        "_SO_ATTACH_FILTER": "SO_ATTACH_FILTER",
        "_SO_LOCK_FILTER": "SO_LOCK_FILTER",
        "_LOAD_HALF_ABSOLUTE": "BPF_LD | BPF_H | BPF_ABS",
        "_LOAD_HALF_INDEXED": "BPF_LD | BPF_H | BPF_IND",
        "_LOAD_HEADER_LENGTH": "BPF_LDX | BPF_B | BPF_MSH",
        "_JUMP_EQUAL": "BPF_JMP | BPF_JEQ | BPF_K",
        "_RETURN": "BPF_RET | BPF_K",
    },
    "sidestep.proxy.connection.datagrams": {"SO_MEMINFO": "SO_MEMINFO"},
    "sidestep.proxy.connection.datagram_addresses": {"IP_PKTINFO": "IP_PKTINFO"},
    "sidestep.proxy.connection.dial": {"IP_BIND_ADDRESS_NO_PORT": "IP_BIND_ADDRESS_NO_PORT"},
    "sidestep.node.daemon": {"_PR_SET_DUMPABLE": "PR_SET_DUMPABLE"},
    "sidestep.node.doctor": {"_CLONE_NEWNET": "CLONE_NEWNET"},
    "sidestep.node.inotify": {
        "_CHANGES": "IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE"
        " | IN_DELETE_SELF | IN_MOVE_SELF"
    },
}
CONSTANTS = [(module, ours, theirs) for module, names in OURS.items() for ours, theirs in names.items()]


@pytest.fixture(scope="module")
def libseccomp():
    command = ["/usr/bin/python3", "-c", LIBSECCOMP, *ALLOWED, *FATAL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"this needs python3-seccomp: {done.stderr}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kernel():
    tree = headers.candidates(environment={}, release=platform.release())[0]
    include = (tree.source or tree.build) / "include"
    return Constants(include / name for name in UAPI)


@pytest.mark.parametrize("machine", list(ARCHITECTURES))
def test_every_system_call_has_libseccomp_s_number(libseccomp, machine):
    """libseccomp gives negative numbers to calls that an architecture lacks (seccomp_syscall_resolve_name(3))."""
    index, audit = ARCHITECTURES[machine]
    architecture, numbers = libseccomp[machine]
    assert audit == architecture
    ours = {name: entry[index] for name, entry in (ALLOWED | FATAL).items()}
    assert ours == {name: number if number >= 0 else None for name, number in numbers.items()}
    assert len(ours) == len(ALLOWED) + len(FATAL)


@pytest.mark.parametrize(("module", "where", "name"), [
    ("sidestep.steering.bpf", "_SYSCALL", "bpf"),
    ("sidestep.sandbox.libc", "_SYS_PIVOT_ROOT", "pivot_root"),
])  # fmt: skip
def test_calls_that_the_c_library_does_not_offer_have_the_same_numbers(libseccomp, module, where, name):
    numbers = getattr(import_module(module), where)
    assert numbers == {machine: found[1][name] for machine, found in libseccomp.items()}


@pytest.mark.parametrize("command", list(bpf.Command))
def test_commands_of_bpf_are_the_kernel_s(kernel, command):
    assert command == kernel[f"BPF_{command.name}"]


@pytest.mark.parametrize(("module", "ours", "theirs"), CONSTANTS)
def test_constants_are_the_kernel_s(kernel, module, ours, theirs):
    expected = 0
    for name in theirs.split(" | "):
        expected |= kernel[name]
    assert getattr(import_module(module), ours) == expected


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "AUDIT_ARCH_X86_64"), ("aarch64", "AUDIT_ARCH_AARCH64")])
def test_architectures_are_named_as_the_kernel_names_them(kernel, machine, name):
    assert ARCHITECTURES[machine][1] == kernel[name]


def test_arguments_that_the_filter_allows_are_the_kernel_s(kernel):
    seccomp = import_module("sidestep.sandbox.seccomp")
    names = ("FIONBIO", "FIONREAD", "TIOCOUTQ", "FIOCLEX", "FIONCLEX", "TCGETS")
    assert tuple(kernel[name] for name in names) == seccomp._IOCTL
    names = ("ATTACH_FILTER", "ATTACH_BPF", "ATTACH_REUSEPORT_CBPF", "ATTACH_REUSEPORT_EBPF")
    assert tuple(kernel[f"SO_{name}"] for name in names) == seccomp._SOCKET_FILTERS
    assert {kernel["F_SETPIPE_SZ"], kernel["F_GETPIPE_SZ"]} <= set(seccomp._FCNTL)


def test_bits_that_keep_root_from_getting_privileges_back_are_the_kernel_s(kernel):
    names = ("NOROOT", "NO_SETUID_FIXUP", "NO_CAP_AMBIENT_RAISE")
    bits = [f"SECURE_{name}{suffix}" for name in names for suffix in ("", "_LOCKED")] + ["SECURE_KEEP_CAPS_LOCKED"]
    capabilities = import_module("sidestep.sandbox.capabilities")
    assert sum(1 << kernel[name] for name in bits) == capabilities._SECUREBITS


def test_capabilities_are_the_kernel_s(kernel):
    doctor = import_module("sidestep.node.doctor")
    assert {name: kernel[f"CAP_{name}"] for name in doctor.CAPABILITIES} == doctor.CAPABILITIES


def test_every_process_that_asks_to_die_with_its_parent_asks_by_the_right_number(kernel):
    """The one constant of prctl(2) that each child module writes for itself."""
    daemon = Path(import_module("sidestep").__file__).parent
    found = [
        (path.name, int(number))
        for path in daemon.rglob("*.py")
        for number in re.findall(r"^_PR_SET_PDEATHSIG(?:, \w+)* = (\d+)", path.read_text(), re.MULTILINE)
    ]
    assert found
    assert {number for _, number in found} == {kernel["PR_SET_PDEATHSIG"]}
