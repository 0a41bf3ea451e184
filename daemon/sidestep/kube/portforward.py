"""A port-forward to a pod: a WebSocket to the API server on one side, a plain socket on ours.

    GET /api/v1/namespaces/NS/pods/POD/portforward?ports=N     subprotocol v4.channel.k8s.io

Each message starts with a channel number: 0 carries data, 1 an error text. The first message of each channel repeats
the port, two bytes, little-endian (k8s.io/kubernetes pkg/kubelet/cri/streaming/portforward/websocket.go). The protocol
has no half-close, so a forward ends in both directions at once. Kernel buffers provide back-pressure on both sides.

The `websockets` library frames, masks and checks (sans-IO, RFC 6455).
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Self

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.frames import BINARY, CLOSE, CONT, TEXT, Frame
from websockets.http11 import Response
from websockets.protocol import Protocol, Side
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from sidestep.aio.tasks import Tasks
from sidestep.kube.api import Api
from sidestep.kube.errors import UnreachableClusterError
from sidestep.kube.paths import escape

if TYPE_CHECKING:
    from sidestep.kube.transport import UpgradedStream

PROTOCOL = Subprotocol("v4.channel.k8s.io")
READ_SIZE = 64 * 1024
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message. API servers send at most about 32 KiB."""


class PortForward:
    """One forwarded connection. The caller uses `socket` and closes it."""

    def __init__(self, stream: UpgradedStream) -> None:
        self.socket, self._inner = socket.socketpair()
        self.socket.setblocking(False)
        self._inner.setblocking(False)
        self._stream = stream
        self._peer = Protocol(Side.CLIENT, max_size=MAX_MESSAGE)
        self._tasks = Tasks("port-forward", on_crash=self._crashed)
        self.error = ""
        """Error text of the node, when the connection could not be established or broke."""
        self._tasks.start(self._inward(), name="inward")
        self._tasks.start(self._outward(), name="outward")

    @classmethod
    async def open(cls, api: Api, *, namespace: str, pod: str, port: int) -> Self:
        """Request a port-forward. Raises ApiError, UnreachableClusterError."""
        path = f"/api/v1/namespaces/{escape(namespace)}/pods/{escape(pod)}/portforward"
        uri = WebSocketURI(secure=True, host=api.access.host, port=api.access.port, path=path, query="")
        handshake = ClientProtocol(uri, subprotocols=[PROTOCOL])
        wanted = {name: value for name, value in handshake.connect().headers.raw_items() if name != "Host"}
        stream, found = await api.upgrade(path, {"ports": port}, wanted)
        try:
            handshake.process_response(Response(101, "", Headers(found)))
        except InvalidHandshake as error:
            stream.close()
            # The library's text quotes the answer, which may hold any bytes.
            raise UnreachableClusterError(
                f"the API server {api.access} does not speak WebSocket: its answer is no handshake (RFC 6455, 4.2.2)"
            ) from error
        return cls(stream)

    async def aclose(self) -> None:
        """Close the forward; the peer of `socket` sees the end."""
        await self._tasks.aclose()
        self._hang_up()
        self._stream.close()
        self._inner.close()

    async def _inward(self) -> None:
        """Copy from the pod to the socket."""
        messages = ChannelMessages()
        try:
            while data := await self._stream.reader.read(READ_SIZE):
                self._peer.receive_data(data)
                await self._flush()  # pongs
                for frame in self._peer.events_received():
                    if not isinstance(frame, Frame) or frame.opcode is CLOSE:
                        return
                    await self._deliver(messages, frame)
                if self._peer.parser_exc is not None:
                    self.error = self.error or f"the API server broke the WebSocket: {self._peer.parser_exc}"
                    return
        except OSError as error:
            self.error = self.error or str(error)
        finally:
            self._hang_up()

    async def _deliver(self, messages: ChannelMessages, frame: Frame) -> None:
        channel, payload = messages.feed(frame)
        if channel == 0 and payload:
            await asyncio.get_running_loop().sock_sendall(self._inner, payload)
        elif channel == 1:
            self.error = (self.error + payload.decode("utf-8", "replace"))[:1000]

    async def _outward(self) -> None:
        """Copy from the socket to the pod."""
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._inner, READ_SIZE):
                self._peer.send_binary(b"\x00" + data)
                await self._flush()
            self._peer.send_close(1000)
            await self._flush()
        except (OSError, WebSocketException) as error:
            self.error = self.error or str(error)
        finally:
            self._hang_up()

    async def _flush(self) -> None:
        if pending := b"".join(self._peer.data_to_send()):
            self._stream.writer.write(pending)
            await self._stream.writer.drain()

    def _hang_up(self) -> None:
        self._stream.writer.close()
        try:
            self._inner.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already closed
        self._tasks.cancel()

    def _crashed(self, task: str, error: BaseException) -> None:
        self.error = self.error or f"{task} failed: {error!r}"
        self._hang_up()


class ChannelMessages:
    """Tells the channels of messages apart. A fragment is delivered as it comes; none is kept."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._channel = -1
        self._is_port = False

    def feed(self, frame: Frame) -> tuple[int, bytes]:
        """Return channel and payload of a frame: of none, (-1, b""), for ports, control frames and empty messages."""
        if frame.opcode not in {BINARY, TEXT, CONT}:
            return -1, b""
        data = bytes(frame.data)
        if frame.opcode is not CONT:
            self._channel = -1
        if self._channel < 0:
            if not data:
                return -1, b""
            self._channel, data = data[0], data[1:]
            self._is_port = self._channel not in self._seen
            self._seen.add(self._channel)
        return (-1, b"") if self._is_port else (self._channel, data)
