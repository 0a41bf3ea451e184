"""Load generators: one run of wrk or h2load in the client's namespace, on core 0, and what it achieved."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cpu import LOAD_CORE
from tests.harness.namespaces import Netns

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Load:
    """What a run achieved; latencies in seconds."""

    requests: int
    seconds: float
    p50: float = 0.0
    p99: float = 0.0
    failed: int = 0

    @property
    def rate(self) -> float:
        """Requests (or GiB) per second."""
        return self.requests / self.seconds


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9.]+)(us|ms|s|m)", text)
    assert match, text
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Place:
    """Where load comes from: a namespace, with `hosts` in the place of /etc/hosts, so that names (and SNI) work."""

    netns: Netns
    hosts: Path


def _run(place: Place, command: list[str], seconds: float) -> str:
    mount = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(place.hosts)]
    words = place.netns.enter([*mount, "taskset", "-c", str(LOAD_CORE), *command])
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wrk(
    place: Place,
    url: str,
    *,
    seconds: float,
    connections: int = 16,
    script: Path | None = None,
    headers: tuple[str, ...] = (),
) -> Load:
    """wrk with one thread (HTTP/1.1, keep-alive). `seconds` is whole."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{int(seconds)}s"]
    for header in headers:
        command += ["-H", header]
    if script is not None:
        command += ["-s", str(script)]
    output = _run(place, [*command, url], seconds)
    total = re.search(r"(\d+) requests in ([0-9.]+\w+)", output)
    assert total, output
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failed = (int(wrong[1]) if wrong else 0) + (sum(map(int, broken.groups())) if broken else 0)
    return Load(int(total[1]), _seconds(total[2]), failed=failed)


_DOWNLOAD = """
import socket, sys, time
host, request = sys.argv[1], sys.argv[2].encode()
port, size, count = map(int, sys.argv[3:])
buffer = bytearray(1 << 20)
begin = time.monotonic()
for _ in range(count):
    left = size
    with socket.create_connection((host, port)) as sock:
        sock.sendall(request)
        while left > 0:
            got = sock.recv_into(buffer, 0, socket.MSG_TRUNC)
            if not got:
                sys.exit("the download ended early")
            left -= got
print(time.monotonic() - begin)
"""


def download(place: Place, host: str, port: int, *, size: int, times: int) -> Load:
    """Download /files/big in a way that no proxy takes for HTTP; bytes are dropped in the kernel (MSG_TRUNC).

    `requests` of the result are GiB.
    """
    request = f"\r\nGET /files/big HTTP/1.1\r\nHost: {host}\r\n\r\n"
    words = [host, request, *map(str, (port, size, times))]
    output = _run(place, [sys.executable, "-c", _DOWNLOAD, *words], 120)
    return Load(requests=times * size >> 30, seconds=float(output))


def h2load(
    place: Place,
    url: str,
    *,
    requests: int,
    connections: int,
    streams: int = 1,
    paths: Path | None = None,
    http1: bool = False,
    rate: float | None = None,
) -> Load:
    """h2load with one thread. `paths` is a file of URLs to cycle through; `rate` (requests a second) also asks for
    latencies.
    """
    command = ["h2load", "-t1", f"-n{requests}", f"-c{connections}", f"-m{streams}"]
    if http1:
        command.append("--h1")
    log = place.hosts.with_name("latency.log")
    if rate is not None:
        log.unlink(missing_ok=True)
        command += [f"--rps={max(1, int(rate / connections))}", f"--log-file={log}"]
    command += ["-i", str(paths)] if paths is not None else [url]
    output = _run(place, command, 60)
    finished = re.search(r"finished in ([0-9.]+\w+)", output)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    assert finished, output
    assert counts, output
    p50, p99 = _percentiles(log) if rate is not None else (0.0, 0.0)
    failed = sum(int(counts[index]) for index in (2, 3, 4))
    return Load(int(counts[1]), _seconds(finished[1]), p50, p99, failed)


def _percentiles(log: Path) -> tuple[float, float]:
    """p50 and p99 of h2load's log: (start, status, microseconds) of every request."""
    times = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
    return times[len(times) // 2] / 1e6, times[len(times) * 99 // 100] / 1e6
