"""A developer's handler as a process of its own: `python -m tests.harness.handler [--tls FOLDER]`.

Prints its port, then a line per request. It answers as `peers.http_app` does; `/half` sends half an answer and stays.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from tests.harness.authority import Certificate
from tests.harness.http1 import Message
from tests.harness.http2 import any_app
from tests.harness.peers import Connection, Server, answer, server_context


def serve(server: Server, connection: Connection) -> None:
    """The script of one connection."""
    while True:
        request = Message(connection.reader.until(b"\r\n\r\n"))
        connection.reader.read_body(request, response=False)
        print(request.method, request.target, flush=True)
        if request.target == "/half":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
            server.release.wait()
        answer(server, connection, request)


def main() -> None:
    """Serve until killed."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tls", type=Path, help="folder with tls.crt and tls.key")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--name", default="handler")
    options.add_argument("--any", action="store_true", help="speak HTTP/2 too, and print no requests")
    words = options.parse_args()
    context = None
    if words.tls is not None:
        chain, key = (words.tls / "tls.crt").read_bytes(), (words.tls / "tls.key").read_bytes()
        alpn = ("h2", "http/1.1") if words.any else ("http/1.1",)
        context = server_context(Certificate(chain=chain, key=key, ca=b"", serial=0), alpn=alpn)
    with Server(
        any_app if words.any else serve, record=not words.any, name=words.name, port=words.port, tls=context
    ) as server:
        print(server.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
