"""Compares what is written by hand with the library for it: `python -m tests.bench.by_hand` prints a table.

Both sides do the same work in turns, in one process; a figure is CPU time in microseconds, the least of `TURNS` turns.
Libraries are used the cheapest way that gives what Sidestep needs. Needs root, because of the namespace's sockets.
"""

from __future__ import annotations

import ctypes
import platform
import socket
import subprocess
import time
from collections.abc import Callable
from ipaddress import IPv4Address

import h11
import hpack
from pyroute2 import DiagSocket  # type: ignore[import-untyped]
from pyroute2.netlink.diag import SS_LISTEN  # type: ignore[import-untyped]

from sidestep.netns import Netns, listening
from sidestep.netns.fingerprint import Question, fingerprint
from sidestep.protocols import hpack as own_hpack
from sidestep.protocols.http1 import parse_request
from sidestep.sandbox.seccomp import assemble
from sidestep.sandbox.syscalls import ALLOWED

TURNS, CALLS = 15, 200
HEAD = (
    b"POST /orders/41?verbose=1 HTTP/1.1\r\nHost: orders.shop.test\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n"
    b"Content-Type: application/json\r\nContent-Length: 120\r\nX-Request-Id: 5f3c9f0e8a\r\nX-Dev: ada\r\n"
    b"Accept-Encoding: gzip, deflate\r\nCookie: session=0123456789abcdef\r\n\r\n"
)
FIELDS = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/shop.v1.Orders/Get"),
    (":authority", "orders.shop.test:8443"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("grpc-timeout", "5S"),
    ("user-agent", "grpc-python/1.70.0 grpc-c/44.2.0 (linux; chttp2)"),
    ("x-request-id", "5f3c9f0e8a"),
    ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
]
_SCMP_ACT_ALLOW, _SCMP_ACT_ERRNO = 0x7FFF0000, 0x00050001


def compared(ours: Callable[[], object], library: Callable[[], object], *, calls: int = CALLS) -> tuple[float, float]:
    """CPU time of one call of each, in microseconds."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for work, times in zip((ours, library), spent, strict=True):
            began = time.process_time()
            for _ in range(calls):
                work()
            times.append((time.process_time() - began) / calls * 1e6)
    return min(spent[0]), min(spent[1])


def http1() -> tuple[float, float]:
    """One request head: read, judged, split into fields."""

    def library() -> None:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(HEAD)
        connection.next_event()

    return compared(lambda: parse_request(HEAD), library)


def header_block() -> tuple[float, float]:
    """One block of a gRPC request by a fresh decoder, without the memo that answers repeated blocks."""
    block = hpack.Encoder().encode(FIELDS)

    def ours() -> None:
        own_hpack.decode(own_hpack.INITIAL, block, list_limit=65536, table_limit=4096)

    return compared(ours, lambda: hpack.Decoder().decode(block, raw=True))


def repeated_block() -> tuple[float, float]:
    """The same block again on a connection: the memo against a decoder that keeps its table."""
    block = hpack.Encoder().encode(FIELDS)
    memo, state = own_hpack.Memo(1 << 20), own_hpack.INITIAL
    memo.decode(state, block, list_limit=65536, table_limit=4096)
    decoder = hpack.Decoder()
    return compared(
        lambda: memo.decode(state, block, list_limit=65536, table_limit=4096), lambda: decoder.decode(block, raw=True)
    )


def listeners() -> tuple[float, float]:
    """Whether the socket on a port of a namespace is still the same."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Netns.open("/proc/self/ns/net") as netns,
        DiagSocket() as diag,
    ):
        port = server.getsockname()[1]
        question = Question.about([(IPv4Address("127.0.0.1"), port)])
        assert fingerprint(netns, question)
        assert listening(netns) is not None
        return compared(
            lambda: fingerprint(netns, question),
            lambda: [each for each in diag.get_sock_stats(family=socket.AF_INET, states=1 << SS_LISTEN)
                     if each["idiag_sport"] == port],
            calls=20,
        )  # fmt: skip


def filter_program() -> tuple[str, str]:
    """Assembling the filter of system calls. libseccomp gets the names only, without conditions on arguments."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    names = [ctypes.c_int(library.seccomp_syscall_resolve_name(name.encode())) for name in ALLOWED]

    def assembled() -> None:
        context = ctypes.c_void_p(library.seccomp_init(_SCMP_ACT_ERRNO))
        for number in names:
            library.seccomp_rule_add(context, _SCMP_ACT_ALLOW, number, 0)
        library.seccomp_release(context)

    ours, theirs = compared(lambda: assemble(platform.machine()), assembled, calls=20)
    return (
        f"{ours:.0f} µs, {len(assemble(platform.machine())) // 8} instructions",
        f"{theirs:.0f} µs for the names alone",
    )


def bcc() -> tuple[str, str]:
    """Memory that importing bcc costs a process, which would be the daemon for its link calls."""
    program = (
        "import resource, ctypes\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nimport bcc\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", program], capture_output=True, text=True, check=True)
    return "0 MiB (ctypes is loaded anyway)", f"{float(done.stdout):.0f} MiB, and it has no link call"


def main() -> None:
    """Measure and print the table."""
    print("| by hand | where | ours | library |\n|---|---|---|---|")
    for what, where, library, measure in (
        ("HTTP/1 request head of ten fields", "protocols/http1.py", "h11", http1),
        ("HPACK, a block for the first time", "protocols/hpack.py", "hpack", header_block),
        ("HPACK, a block that is known", "protocols/hpack.py", "hpack", repeated_block),
        ("has a listener changed", "netns/fingerprint.py", "pyroute2", listeners),
    ):
        ours, theirs = measure()
        print(f"| {what} | `{where}` | {ours:.1f} µs | `{library}`: {theirs:.1f} µs |", flush=True)
    for what, where, library, told in (
        ("filter of system calls", "proxy/runtime/seccomp.py", "libseccomp", filter_program()),
        ("`bpf(2)`: links, programs, maps", "steering/bpf.py", "bcc", bcc()),
    ):
        print(f"| {what} | `{where}` | {told[0]} | `{library}`: {told[1]} |", flush=True)


if __name__ == "__main__":
    main()
