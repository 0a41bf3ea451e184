"""Servers and clients of our own: plain or TLS, inside any namespace, recording the bytes they saw.

A `Server` accepts on a socket made inside a namespace and gives each connection a thread running its *script*: a
function that reads and answers. `http_app` is the script of an ordinary application that says who it is; tests write
others in a few lines. A `Client` is one connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.harness.authority import Certificate
from tests.harness.http1 import ClosedError, Message, Reader
from tests.harness.namespaces import Netns

PATIENCE = 30.0
"""Seconds a peer of ours waits for the other side before it gives up."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER value that makes close() send a reset."""


@dataclass
class Connection:
    """One accepted connection."""

    sock: socket.socket
    peer: tuple[str, int]
    reader: Reader
    server_name: str | None = None
    alpn: str | None = None
    tls: str | None = None
    failure: str = ""
    """Why the TLS handshake or the script failed, if it did."""
    finished: threading.Event = field(default_factory=threading.Event)

    @property
    def received(self) -> bytes:
        return bytes(self.reader.received)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()


Script = Callable[["Server", Connection], None]


def server_context(
    folder_certificate: Certificate,
    *,
    alpn: tuple[str, ...] = ("http/1.1",),
    clients: bytes | None = None,
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A server's context. `clients` is the CA (PEM) from which client certificates are then required."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = minimum, maximum
    chain, key = os.memfd_create("chain"), os.memfd_create("key")
    try:
        os.write(chain, folder_certificate.chain)
        os.write(key, folder_certificate.key)
        context.load_cert_chain(f"/proc/self/fd/{chain}", f"/proc/self/fd/{key}")
    finally:
        os.close(chain)
        os.close(key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients.decode())
    return context


class Server:
    """A listening server; use as a context manager. `name` is what `http_app` answers with."""

    def __init__(
        self,
        script: Script,
        *,
        name: str = "app",
        netns: Netns | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
        dual_stack: bool = False,
        tls: ssl.SSLContext | None = None,
        record: bool = True,
    ) -> None:
        self.script = script
        self.name = name
        self.tls = tls
        self.record = record
        self.connections: list[Connection] = []
        self.release = threading.Event()
        """Set by a test to let `/hold` answer."""
        self.holding = threading.Semaphore(0)
        """Released once for each request that has reached `/hold`."""
        self.conversation: Sequence[tuple[bytes, bytes]] = ()
        """For scripts that only count bytes: what the client will say, and what to answer."""
        self._names: dict[int, str] = {}
        self._threads: list[threading.Thread] = []

        def listen() -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            made = socket.socket(family)
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
                made.bind((address, port))
                made.listen(1024)
            except OSError:
                made.close()
                raise
            return made

        self._listener = netns.call(listen) if netns else listen()
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        if self.tls is not None:
            self.tls.sni_callback = self._remember_name
        self._start(self._accept, "accept")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening, break what is open, join every thread."""
        self.release.set()
        self.close_listener()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(PATIENCE)

    def close_listener(self) -> None:
        """Refuse new connections from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def requests(self) -> int:
        """Connections on which at least one byte arrived (of HTTP or anything else)."""
        return sum(1 for connection in self.connections if connection.reader.received)

    def _start(self, target: Callable[..., None], *words: object) -> None:
        thread = threading.Thread(target=target, args=words[:-1], name=f"{self.name} {words[-1]}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _remember_name(self, sock: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        if name is not None:
            self._names[id(sock)] = name

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, sock, peer[:2], "connection")

    def _serve(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        sock.settimeout(PATIENCE)
        connection = Connection(sock, peer, Reader(sock, record=self.record))
        self.connections.append(connection)
        try:
            if self.tls is not None:
                wrapped = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                connection.sock = connection.reader.sock = wrapped
                wrapped.do_handshake()
                connection.server_name = self._names.pop(id(wrapped), None)
                connection.alpn, connection.tls = wrapped.selected_alpn_protocol(), wrapped.version()
            self.script(self, connection)
        except (OSError, ClosedError, ValueError, IndexError) as error:  # the last two: bytes that are not HTTP
            connection.failure = repr(error)
        finally:
            connection.sock.close()
            connection.finished.set()


def http_app(server: Server, connection: Connection) -> None:
    """An ordinary HTTP/1.1 application that says who it is in `X-Served-By` and in most bodies.

    /            its name                      /digest   SHA-256 and size of the request's body
    /echo        the request's body            /bytes/N  N bytes (`pattern`)
    /hold        waits for `release`           /drop     closes without an answer
    /half        half an answer, then closes   /chunked  a chunked answer with a trailer
    Upgrade: any 101, then every byte back in upper case after the server's name
    """
    while True:
        head = Message(connection.reader.until(b"\r\n\r\n"))
        if head.header("expect").lower() == "100-continue":
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        big = head.target.startswith("/digest")
        connection.reader.read_body(head, response=False, keep_body=not big)
        if head.header("upgrade"):
            connection.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: %b\r\nConnection: Upgrade\r\n\r\n"
                % head.header("upgrade").encode()
            )
            connection.send(server.name.encode() + b" ready\n")
            while True:
                connection.send(connection.reader.some().upper())
        answer(server, connection, head)
        if head.header("connection").lower() == "close":
            return


def answer(server: Server, connection: Connection, request: Message) -> None:
    """One answer of `http_app`."""
    name, path = server.name.encode(), request.target.partition("?")[0]
    start = b"HTTP/1.1 200 OK\r\nX-Served-By: %b\r\n" % name
    if path.startswith("/bytes/"):
        size = int(path.rpartition("/")[2])
        connection.send(start + b"Content-Length: %d\r\n\r\n" % size)
        for piece in pattern(size):
            connection.send(piece)
        return
    if path == "/chunked":
        chunks = b"5\r\nhello\r\n%x\r\n%b\r\n0\r\nX-Trailer: %b\r\n\r\n" % (len(name), name, name)
        connection.send(start + b"Transfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n" + chunks)
        return
    if path == "/drop":
        raise ClosedError
    if path == "/half":
        connection.send(start + b"Content-Length: 1000\r\n\r\nhalf")
        raise ClosedError
    if path == "/hold":
        server.holding.release()
        server.release.wait(PATIENCE)
    body = name + b"\n"
    if path == "/echo":
        body = request.body or b""
    elif path == "/digest":
        body = b"%b %d\n" % (request.digest.encode(), request.size)
    if request.method == "HEAD":
        connection.send(start + b"Content-Length: %d\r\n\r\n" % len(body))
    else:
        connection.send(start + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))


_BLOCK = hashlib.shake_256(b"sidestep").digest(1 << 20)


def pattern(size: int):  # type: ignore[no-untyped-def]
    """`size` bytes that differ everywhere, in pieces."""
    done = 0
    while done < size:
        piece = (done.to_bytes(8, "big") + _BLOCK[8:])[: size - done]
        done += len(piece)
        yield piece


def digest_of(size: int) -> str:
    """SHA-256 in hex of `pattern(size)`."""
    digest = hashlib.sha256()
    for piece in pattern(size):
        digest.update(piece)
    return digest.hexdigest()


class Client:
    """One client connection from inside a namespace; `reader.received` is what came back, byte for byte."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        netns: Netns | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        within: float = PATIENCE,
        record: bool = True,
    ) -> None:
        def make() -> socket.socket:
            return socket.create_connection((address, port), timeout=within)

        self.sock: socket.socket = netns.call(make) if netns else make()
        self.sock.settimeout(within)
        if tls is not None:
            try:
                self.sock = tls.wrap_socket(self.sock, server_hostname=server_name)
            except BaseException:
                self.sock.close()
                raise
        self.reader = Reader(self.sock, record=record)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(self, text: bytes, *, method: str = "GET") -> Message:
        """Send a whole request, read its answer."""
        self.send(text)
        return self.reader.message(answers=method)

    def get(self, path: str = "/", *lines: str, host: str = "orders.shop.test") -> Message:
        """A GET with the header lines given."""
        head = "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "", ""])
        return self.request(head.encode("latin-1"))

    def finish(self) -> None:
        """Half-close."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
