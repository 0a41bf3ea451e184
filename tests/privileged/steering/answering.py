"""A server that answers every connection with its name, and the client that asks for it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from tests.harness.namespaces import Netns

REFUSED = b"refused"


class Answering:
    """Accepts in a thread, sends `name`, waits for the client to close. Closes the listener at the end."""

    def __init__(self, listener: socket.socket, name: bytes) -> None:
        self.listener = listener
        self.name = name
        self.locals: list[tuple[str, int]] = []
        """The local address of each accepted connection."""
        self.remotes: list[tuple[str, int]] = []
        """The address of each one's other end."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"answering {name!r}")

    def _serve(self) -> None:
        self.listener.settimeout(0.05)
        while not self._stop.is_set():
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                self.locals.append(connection.getsockname()[:2])
                self.remotes.append(connection.getpeername()[:2])
                connection.sendall(self.name)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)

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
        self.listener.close()


def app(netns: Netns, address: str, port: int, name: bytes = b"app") -> Answering:
    """An app in `netns` that listens on `address`; `::` serves IPv4 too."""

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address, port))
        listener.listen(128)
        return listener

    return Answering(netns.call(listen), name)


def ask(netns: Netns, address: str, port: int) -> bytes:
    """Dial from inside `netns`; the name of who answered, or REFUSED."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.call(lambda: socket.socket(family, socket.SOCK_STREAM)) as client:
        client.settimeout(5)
        try:
            client.connect((address, port))
        except ConnectionRefusedError:
            return REFUSED
        answer = b""
        while chunk := client.recv(64):
            answer += chunk
        return answer
