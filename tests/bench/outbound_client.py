"""A client in a pod: makes connections one after the other and prints what one costs it, as JSON.

    python -m tests.bench.outbound_client KIND HOST PORT COUNT

KIND is `clear` (a request in clear on each connection) or `tls` (a handshake without resumption, and a request). With
`hold-` before it all connections stay open after their answer, until the process is ended.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
import ssl
import statistics
import sys
import time

NAME = "api.test"
REQUEST = f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()


def once(host: str, port: int, context: ssl.SSLContext | None) -> tuple[float, float]:
    """Seconds of connect(), and of everything."""
    began = time.perf_counter()
    sock: socket.socket = socket.create_connection((host, port), timeout=30)
    connected = time.perf_counter()
    if context is not None:
        sock = context.wrap_socket(sock, server_hostname=NAME)
    sock.sendall(REQUEST)
    answer = b""
    while data := sock.recv(65536):
        answer += data
    sock.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:100]
    return connected - began, time.perf_counter() - began


def hold(host: str, port: int, context: ssl.SSLContext | None, count: int) -> None:
    """Open connections, ask once on each, and keep them."""
    held = []
    for _ in range(count):
        sock: socket.socket = socket.create_connection((host, port), timeout=30)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname=NAME)
        sock.sendall(REQUEST.replace(b"Connection: close\r\n", b""))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        held.append(sock)
    print("held", len(held), flush=True)
    signal.pause()


def main(kind: str, host: str, port: int, count: int) -> None:
    """Print the costs of `count` connections."""
    context = None
    if kind.endswith("tls"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if kind.startswith("hold-"):
        hold(host, port, context, count)
    once(host, port, context)
    before = resource.getrusage(resource.RUSAGE_SELF)
    times = [once(host, port, context) for _ in range(count)]
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shown = {
        "cpu": cpu / count,
        "connect": statistics.median(each[0] for each in times),
        "whole": statistics.median(each[1] for each in times),
    }
    print(json.dumps(shown))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
