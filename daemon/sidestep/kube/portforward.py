"""A port-forward to a pod: a WebSocket to the API server on one side, a plain socket on ours.

    GET /api/v1/namespaces/NS/pods/POD/portforward?ports=N     subprotocol v4.channel.k8s.io

Each message starts with a channel number: 0 carries data, 1 an error text. The first message of each channel repeats
the port, two bytes, little-endian (k8s.io/kubernetes pkg/kubelet/cri/streaming/portforward/websocket.go). The protocol
has no half-close, so a forward ends in both directions at once. Kernel buffers provide back-pressure on both sides.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Self

from sidestep.aio.tasks import Tasks
from sidestep.kube.api import Api, escape
from sidestep.kube.websocket import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, frame
from sidestep.model.errors import PeerError

PROTOCOL = "v4.channel.k8s.io"
READ_SIZE = 64 * 1024


class PortForward:
    """One forwarded connection. The caller uses `socket` and closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trailing: bytes) -> None:
        self.socket, self._inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self._inner.setblocking(False)
        self._reader, self._writer, self._trailing = reader, writer, trailing
        self._tasks = Tasks("port-forward", on_crash=self._crashed)
        self.error = ""
        """Error text of the node, when the connection could not be established or broke."""
        self._tasks.start(self._inward(), name="inward")
        self._tasks.start(self._outward(), name="outward")

    @classmethod
    async def open(cls, api: Api, *, namespace: str, pod: str, port: int) -> Self:
        """Request a port-forward. Raises ApiError, UnreachableClusterError."""
        path = f"/api/v1/namespaces/{escape(namespace)}/pods/{escape(pod)}/portforward"
        return cls(*await api.upgrade(path, {"ports": port}, protocol=PROTOCOL))

    async def aclose(self) -> None:
        """Close the forward; the peer of `socket` sees the end."""
        await self._tasks.aclose()
        self._hang_up()
        self._inner.close()

    async def _inward(self) -> None:
        """Copy from the pod to the socket."""
        loop = asyncio.get_running_loop()
        frames = FrameReader()
        seen: set[int] = set()
        data = self._trailing or await self._reader.read(READ_SIZE)
        try:
            while data:
                for message in frames.feed(data):
                    match message.opcode:
                        case opcode if opcode in {BINARY, TEXT} and message.payload:
                            channel, payload = message.payload[0], message.payload[1:]
                            if channel not in seen:
                                seen.add(channel)  # the port, which is already known
                            elif channel == 0:
                                await loop.sock_sendall(self._inner, payload)
                            elif channel == 1:
                                self.error += payload.decode("utf-8", "replace")[:1000]
                        case opcode if opcode == PING:
                            self._writer.write(frame(PONG, message.payload))
                        case opcode if opcode == CLOSE:
                            return
                        case _:
                            pass
                data = await self._reader.read(READ_SIZE)
        except (OSError, PeerError) as error:
            self.error = self.error or str(error)
        finally:
            self._hang_up()

    async def _outward(self) -> None:
        """Copy from the socket to the pod."""
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._inner, READ_SIZE):
                self._writer.write(frame(BINARY, b"\x00" + data))
                await self._writer.drain()
            self._writer.write(frame(CLOSE, (1000).to_bytes(2, "big")))
            await self._writer.drain()
        except OSError as error:
            self.error = self.error or str(error)
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        self._writer.close()
        try:
            self._inner.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already closed
        self._tasks.cancel()

    def _crashed(self, task: str, error: BaseException) -> None:
        self.error = self.error or f"{task} failed: {error!r}"
        self._hang_up()
