"""HTTP/2 peers made with the `h2` library: an application for `peers.Server`, a thread per connection, and a client.

`any_app` speaks HTTP/2 to clients that begin with its preface, or ask for it with `Upgrade: h2c`, and HTTP/1.1 to all
others. The paths of both versions
answer as those of `peers.http_app`:

    /         the server's name                  /digest   SHA-256 and size of the request's body
    /echo     the request's body                 /bytes/N  N bytes (`pattern`)
    /hold     answers once `release` is set
    extended CONNECT with `:protocol: websocket` (RFC 8441): a WebSocket that returns every message, after the name
"""

from __future__ import annotations

import hashlib
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol

from tests.harness.http1 import ClosedError, Message
from tests.harness.peers import Connection, Server, http_app, pattern

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CODES = h2.settings.SettingCodes
WINDOW = 1 << 20


def any_app(server: Server, connection: Connection) -> None:
    """Serve a connection in the version that its client speaks."""
    reader = connection.reader
    while len(reader.buffer) < len(PREFACE) and PREFACE.startswith(bytes(reader.buffer)):
        reader.fill()
    if reader.buffer.startswith(PREFACE):
        _Http2App(server, connection).run()
        return
    while b"\r\n\r\n" not in reader.buffer:
        reader.fill()
    head = Message(bytes(reader.buffer).partition(b"\r\n\r\n")[0])
    if head.header("upgrade") == "h2c":
        reader.until(b"\r\n\r\n")
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        _Http2App(server, connection).run(upgraded=head)
    else:
        http_app(server, connection)


class _Request:
    """One stream: its request so far, and what is left to be sent."""

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self.digest = hashlib.sha256()
        self.size = 0
        self.body = bytearray()
        self.pieces: Iterator[bytes] | None = None
        self.piece = b""
        self.queue: deque[bytes] = deque()
        self.websocket: Protocol | None = None

    @property
    def path(self) -> str:
        return self.headers.get(":path", "").partition("?")[0]


class _Http2App:
    """One HTTP/2 connection, blocking, one event after the other; bodies as the client's windows allow."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        values = {CODES.ENABLE_CONNECT_PROTOCOL: 1, CODES.INITIAL_WINDOW_SIZE: WINDOW}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=values)
        del self.h2.local_settings[CODES.ENABLE_PUSH]
        self.requests: dict[int, _Request] = {}
        self.held: list[int] = []

    def run(self, *, upgraded: Message | None = None) -> None:
        """Serve until the client leaves. `upgraded`: the request, of HTTP/1.1, that is answered on stream 1."""
        reader = self.connection.reader
        if upgraded is None:
            self.h2.initiate_connection()
        else:
            self.h2.initiate_upgrade_connection(upgraded.header("http2-settings").encode())
            self.requests[1] = _Request({":path": upgraded.target})
            self._respond(1, self.requests[1])
        self.h2.increment_flow_control_window(16 * WINDOW)
        while True:
            self._send()
            if not reader.buffer and not self._readable():
                continue
            for event in self.h2.receive_data(reader.some()):
                self._take(event)

    def _readable(self) -> bool:
        """Wait for bytes; while answers are held, look after them."""
        sock = self.connection.sock
        if not self.held or getattr(sock, "pending", int)():
            return True
        if self.server.release.is_set():
            held, self.held = self.held, []
            for stream in held:
                self._answer(stream, iter([self.server.name.encode() + b"\n"]))
            return False
        return bool(select.select([sock], [], [], 0.05)[0])

    def _take(self, event: object) -> None:
        match event:
            case h2.events.RequestReceived():
                request = self.requests[event.stream_id] = _Request(dict(event.headers))
                if request.headers.get(":protocol") == "websocket":
                    self._open_websocket(event.stream_id, request)
            case h2.events.DataReceived():
                request = self.requests.get(event.stream_id)
                if request is None:
                    return
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if request.websocket is not None:
                    self._talk(request, request.websocket, event.data)
                    return
                request.size += len(event.data)
                request.digest.update(event.data)
                if request.path == "/echo":
                    request.body += event.data
            case h2.events.StreamEnded():
                request = self.requests.get(event.stream_id)
                if request is not None and request.websocket is None:
                    self._respond(event.stream_id, request)
            case h2.events.StreamReset():
                self.requests.pop(event.stream_id, None)
            case h2.events.ConnectionTerminated():
                raise ClosedError

    def _respond(self, stream: int, request: _Request) -> None:
        name = self.server.name.encode() + b"\n"
        if request.path == "/hold":
            self.held.append(stream)
            self.server.holding.release()
        elif request.path == "/echo":
            self._answer(stream, iter([bytes(request.body)]))
        elif request.path == "/digest":
            self._answer(stream, iter([f"{request.digest.hexdigest()} {request.size}\n".encode()]))
        elif request.path.startswith("/bytes/"):
            self._answer(stream, pattern(int(request.path.rpartition("/")[2])))
        else:
            self._answer(stream, iter([name]))

    def _answer(self, stream: int, pieces: Iterator[bytes]) -> None:
        if stream in self.requests:
            self.h2.send_headers(stream, [(":status", "200"), ("x-served-by", self.server.name)])
            self.requests[stream].pieces = pieces

    def _send(self) -> None:
        """Everything the windows allow, a frame of each stream in turn."""
        progress = True
        while progress:
            progress = False
            for stream, request in [*self.requests.items()]:
                if request.pieces is not None or request.piece or request.queue:
                    progress |= self._send_frame(stream, request)
            if data := self.h2.data_to_send():
                self.connection.send(data)

    def _send_frame(self, stream: int, request: _Request) -> bool:
        if not request.piece:
            request.piece = request.queue.popleft() if request.pieces is None else next(request.pieces, b"")
        if not request.piece:
            self.h2.end_stream(stream)
            del self.requests[stream]
            return True
        room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(request.piece))
        if room <= 0:
            return False
        self.h2.send_data(stream, request.piece[:room])
        request.piece = request.piece[room:]
        return True

    def _open_websocket(self, stream: int, request: _Request) -> None:
        self.h2.send_headers(stream, [(":status", "200"), ("x-served-by", self.server.name)])
        request.websocket = Protocol(SERVER, max_size=None)
        request.websocket.send_text(self.server.name.encode())
        self._queue(request, request.websocket)

    def _talk(self, request: _Request, websocket: Protocol, data: bytes) -> None:
        websocket.receive_data(data)
        for frame in websocket.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode is Opcode.TEXT:
                websocket.send_text(frame.data, fin=frame.fin)
            elif frame.opcode is Opcode.BINARY:
                websocket.send_binary(frame.data, fin=frame.fin)
            elif frame.opcode is Opcode.CONT:
                websocket.send_continuation(frame.data, fin=frame.fin)
        self._queue(request, websocket)

    def _queue(self, request: _Request, websocket: Protocol) -> None:
        """What the WebSocket says; its last word is b"", the end of the stream."""
        for piece in websocket.data_to_send():
            request.queue.append(piece)


@dataclass
class Http2Answer:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def served_by(self) -> str:
        return self.headers.get("x-served-by", "")


class Http2Client:
    """The client side of an HTTP/2 connection on a connected socket; streams by their ids."""

    def __init__(self, sock: socket.socket, *, upgrade: bool = False, exact: bool = False) -> None:
        """`exact`: heads are sent as they are given, valid or not."""
        self.sock = sock
        checks = {"validate_outbound_headers": not exact, "normalize_outbound_headers": not exact}
        settings = h2.config.H2Configuration(client_side=True, header_encoding="latin-1", **checks)
        self.h2 = h2.connection.H2Connection(settings)
        self.answers: dict[int, Http2Answer] = {}
        if upgrade:
            self._upgrade()
        else:
            self.h2.initiate_connection()
        self.flush()
        if upgrade:
            self.until(lambda: self.answers[1].ended)

    def _upgrade(self) -> None:
        """Ask for HTTP/2 with a request in HTTP/1.1, which becomes stream 1 (RFC 7540 section 3.2)."""
        values = self.h2.initiate_upgrade_connection()
        self.answers[1] = Http2Answer()
        head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        self.sock.sendall(head + b"HTTP2-Settings: " + values + b"\r\n\r\n")
        seen = b""
        while not seen.endswith(b"\r\n\r\n"):
            seen += self.sock.recv(1)
        assert b" 101 " in seen, seen

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def begin(
        self,
        path: str,
        *fields: tuple[str, str],
        method: str = "GET",
        authority: str | None = "orders.shop.test",
        end: bool = True,
    ) -> int:
        """Open a stream with a request head in latin-1."""
        pseudo = [(":method", method), (":scheme", "https"), (":path", path)]
        if authority is not None:
            pseudo.append((":authority", authority))
        extra = [each for each in fields if each[0].startswith(":")]
        stream = self.h2.get_next_available_stream_id()
        head = [*pseudo, *extra, *(each for each in fields if each not in extra)]
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head]
        self.h2.send_headers(stream, encoded, end_stream=end)
        self.answers[stream] = Http2Answer()
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send data as the windows allow."""
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(view))
            if room <= 0:
                self.take()
                continue
            self.h2.send_data(stream, bytes(view[:room]))
            view = view[room:]
            self.flush()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    def take(self) -> None:
        """Receive once; ClosedError at the end."""
        data = self.sock.recv(1 << 18)
        if not data:
            raise ClosedError
        for event in self.h2.receive_data(data):
            answer = self.answers.get(getattr(event, "stream_id", None) or 0)
            if answer is None:
                continue
            match event:
                case h2.events.ResponseReceived():
                    answer.headers = dict(event.headers)
                case h2.events.DataReceived():
                    answer.body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    answer.ended = True
                case h2.events.StreamReset():
                    answer.reset = int(event.error_code)
        self.flush()

    def until(self, done: Callable[[], object]) -> None:
        """Receive until something is true."""
        while not done():
            self.take()

    def request(self, path: str, *fields: tuple[str, str], body: bytes = b"") -> Http2Answer:
        """One request and its whole answer."""
        stream = self.begin(path, *fields, method="POST" if body else "GET", end=not body)
        if body:
            self.send(stream, body, end=True)
        answer = self.answers[stream]
        self.until(lambda: answer.ended or answer.reset is not None)
        return answer
