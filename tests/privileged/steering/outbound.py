"""A pod whose outbound connections are steered, a proxy that dials where they were going, and clients in its cgroup."""

from __future__ import annotations

import contextlib
import json
import mmap
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sidestep.model.egress_table import EgressTable, Original, table_size
from sidestep.netns import Netns, tcp_listener
from sidestep.steering import EgressConfig, EgressPrograms, EgressSteering
from tests.harness.cgroups import inside
from tests.harness.namespaces import PodNamespace

PORT = 4443
RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: close() sends a reset."""

CLIENT = """
import errno, json, select, socket, sys
want = json.loads(sys.argv[1])
family = socket.AF_INET6 if ":" in want["host"] else socket.AF_INET
try:
    sock = socket.socket(family, socket.SOCK_STREAM, want.get("protocol", 0))
except OSError as error:
    print(json.dumps({"error": errno.errorcode[error.errno]}))
    sys.exit()
sock.settimeout(20)
if "only" in want:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, want["only"])
if "device" in want:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, want["device"].encode())
if "bind" in want:
    sock.bind(tuple(want["bind"]))
told = {}
try:
    if want.get("nonblocking"):
        sock.setblocking(False)
        told["began"] = errno.errorcode[sock.connect_ex((want["host"], want["port"]))]
        select.select([], [sock], [], 20)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, "connect")
        sock.settimeout(20)
    elif want.get("fastopen"):
        sock.settimeout(None)
        sock.sendto(b"e", socket.MSG_FASTOPEN, (want["host"], want["port"]))
    else:
        sock.connect((want["host"], want["port"]))
    answer = ""
    while not want.get("mute") and (chunk := sock.recv(64)):
        answer += chunk.decode()
    told.update(peer=sock.getpeername()[:2], local=sock.getsockname()[:2], answer=answer)
except OSError as error:
    told["error"] = errno.errorcode.get(error.errno, str(error))
print(json.dumps(told))
"""


class Dialler:
    """The proxy: accepts, takes the original destination, dials it from the pod's namespace and copies both ways."""

    def __init__(self, steering: EgressSteering, netns: Netns, listener: socket.socket) -> None:
        self.originals: list[Original | None] = []
        self.listener = listener
        self._netns = netns
        size = table_size(steering.entries)
        self._memory = mmap.mmap(steering.table_fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._memory)
        self._mapped = threading.Lock()
        self.table = EgressTable(self._view, network=steering.network, entries=steering.entries)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dialler")

    def _serve(self) -> None:
        self.listener.settimeout(0.05)
        while not self._stop.is_set():
            try:
                accepted, _ = self.listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._relay, args=(accepted,), daemon=True).start()

    def _relay(self, accepted: socket.socket) -> None:
        with accepted:
            accepted.settimeout(30)
            original = self.take(accepted)
            if original is None:
                return
            family = socket.AF_INET if original.address.version == 4 else socket.AF_INET6
            with self._netns.run(lambda: socket.socket(family)) as upstream:
                try:
                    upstream.settimeout(30)
                    upstream.connect((str(original.address), original.port))
                except OSError:
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return
                back = threading.Thread(target=_copy, args=(upstream, accepted), daemon=True)
                back.start()
                _copy(accepted, upstream)
                back.join()

    def take(self, accepted: socket.socket) -> Original | None:
        """Where an accepted connection was going to."""
        host, port = accepted.getsockname()[:2]
        with self._mapped:
            original = self.table.take(ip_address(host), port) if not self._memory.closed else None
        self.originals.append(original)
        return original

    def close(self) -> None:
        """Give up the table, which exists as long as somebody maps it."""
        with self._mapped:
            self._view.release()
            self._memory.close()

    def stop(self) -> None:
        """Stop accepting; the listener stays open."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.close()
        self.listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@dataclass
class Outbound:
    """A pod with the programs attached, and a proxy that serves."""

    space: PodNamespace
    folder: Path
    netns: Netns
    steering: EgressSteering
    proxy: Dialler
    config: EgressConfig

    def command(self, command: Sequence[str | Path]) -> list[str]:
        """The command line that runs a command as the pod does: in its cgroup and its namespace."""
        return inside(self.folder, self.space.pod.enter(command))

    def run(self, *command: str | Path, within: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command in the pod; nothing is checked."""
        return subprocess.run(self.command(command), capture_output=True, text=True, timeout=within, check=False)

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command in the pod, whose output is read."""
        return subprocess.Popen(self.command(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def connect(self, host: str, port: int = PORT, **options: Any) -> dict[str, Any]:
        """What a client in the pod's cgroup sees; see CLIENT."""
        return told(self.command(client(host, port, **options)))

    def counted(self) -> dict[str, int]:
        """The counters that are not zero."""
        return {name: number for name, number in self.steering.counters().items() if number}


def client(host: str, port: int = PORT, **options: Any) -> list[str]:
    """The command line of a client."""
    return [sys.executable, "-c", CLIENT, json.dumps({"host": host, "port": port, **options})]


def told(command: Sequence[str]) -> dict[str, Any]:
    """What a client prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def own(space: PodNamespace) -> EgressConfig:
    """Everything external, from the pod's addresses."""
    return EgressConfig(own=tuple(ip_address(ip) for ip in space.ips))


@contextlib.contextmanager
def outbound(
    programs: EgressPrograms,
    space: PodNamespace,
    folder: Path,
    config: EgressConfig | None = None,
    *,
    entries: int = 1024,
) -> Iterator[Outbound]:
    """Attach to the pod and serve."""
    config = config or own(space)
    with (
        Netns.open(str(space.pod.path)) as netns,
        EgressSteering.attach(programs, str(folder), netns.fd, config, entries=entries) as steering,
        Dialler(steering, netns, tcp_listener(netns, backlog=1024)) as proxy,
    ):
        steering.serve(proxy.listener.fileno())
        yield Outbound(space, folder, netns, steering, proxy, config)
