"""Reading well-formed HTTP/1 messages from a socket, for the peers of the tests; what arrived is kept byte for byte."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass, field

READ = 256 * 1024


class ClosedError(Exception):
    """The other end closed before the message was whole."""


@dataclass
class Message:
    """One message: its head as received, the body (None when only its digest was wanted), and the trailer lines."""

    head: bytes
    body: bytes | None = b""
    trailers: bytes = b""
    size: int = 0
    digest: str = ""

    @property
    def start(self) -> list[str]:
        """The words of the first line."""
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Header fields in order: name in lower case, value."""
        pairs = (line.partition(b":") for line in self.head.split(b"\r\n")[1:] if line)
        return [(name.decode("latin-1").lower(), value.strip().decode("latin-1")) for name, _, value in pairs]

    def header(self, name: str) -> str:
        """The first value of a field, or an empty text."""
        return next((value for key, value in self.fields if key == name.lower()), "")

    @property
    def method(self) -> str:
        return self.start[0]

    @property
    def target(self) -> str:
        return self.start[1]

    @property
    def status(self) -> int:
        return int(self.start[1])


@dataclass
class Reader:
    """Reads messages from a socket. `received` is everything so far, unless `record` is false."""

    sock: socket.socket
    record: bool = True
    received: bytearray = field(default_factory=bytearray)
    buffer: bytearray = field(default_factory=bytearray)
    ended: bool = False

    def fill(self) -> None:
        """Receive once more; ClosedError at the end."""
        data = self.sock.recv(READ)
        if not data:
            self.ended = True
            raise ClosedError
        if self.record:
            self.received += data
        self.buffer += data

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        start = 0
        while (found := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark) + 1)
            self.fill()
        return self._take(found + len(mark))

    def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self.fill()
        return self._take(size)

    def some(self) -> bytes:
        """At least one byte, as many as are there."""
        if not self.buffer:
            self.fill()
        return self._take(len(self.buffer))

    def rest(self) -> bytes:
        """Everything until the other end closes."""
        try:
            while True:
                self.fill()
        except ClosedError:
            return self._take(len(self.buffer))

    def message(self, *, answers: str | None = None, keep_body: bool = True) -> Message:
        """One message. `answers` is the method a response answers; None reads a request."""
        message = Message(self.until(b"\r\n\r\n"))
        if answers is not None and (answers == "HEAD" or message.status in (204, 304) or message.status < 200):
            return message
        self.read_body(message, response=answers is not None, keep_body=keep_body)
        return message

    def read_body(self, message: Message, *, response: bool, keep_body: bool = True) -> None:
        """Read the body that the head of `message` announces."""
        sink, digest = bytearray(), hashlib.sha256()

        def take(data: bytes | bytearray) -> None:
            message.size += len(data)
            digest.update(data)
            if keep_body:
                sink.extend(data)

        if message.header("transfer-encoding").lower() == "chunked":
            while size := int(self.until(b"\r\n").split(b";")[0], 16):
                self._count(size, take)
                self.exactly(2)
            while (line := self.until(b"\r\n")) != b"\r\n":
                message.trailers += line
        elif length := message.header("content-length"):
            self._count(int(length), take)
        elif response:
            take(self.rest())
        message.body = bytes(sink) if keep_body else None
        message.digest = digest.hexdigest()

    def _count(self, size: int, take) -> None:  # type: ignore[no-untyped-def]
        if size < 0:
            raise ValueError(f"a body or chunk of {size} bytes")
        while size:
            if not self.buffer:
                self.fill()
            piece = self._take(min(size, len(self.buffer)))
            size -= len(piece)
            take(piece)

    def _take(self, size: int) -> bytes:
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken
