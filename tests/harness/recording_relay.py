"""A TCP relay on loopback that records what both ends of each connection said, in the order in which it came."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.harness.peers import PATIENCE
from tests.harness.waiting import until


@dataclass
class Recording:
    """One connection. `events` are (nanoseconds since 1970, whether the client spoke, bytes: empty for its end)."""

    client: tuple[str, int]
    server: tuple[str, int]
    events: list[tuple[int, bool, bytes]] = field(default_factory=list)
    over: bool = False


class RecordingRelay:
    """Relays connections to a port of loopback until it is left."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.recordings: list[Recording] = []
        self._threads = [threading.Thread(target=self._accept, name="recording-relay", daemon=True)]

    def finished(self, count: int) -> list[Recording]:
        """The recordings of the first `count` connections, once they are over."""
        until(
            lambda: [each.over for each in self.recordings[:count]] == [True] * count,
            within=PATIENCE,
            what=lambda: f"{count} connections to end: {self.recordings}",
        )
        return self.recordings[:count]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                client, address = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            recording = Recording(address, server.getpeername())
            self.recordings.append(recording)
            thread = threading.Thread(target=self._relay, args=(client, server, recording), daemon=True)
            self._threads.append(thread)
            thread.start()

    @staticmethod
    def _relay(client: socket.socket, server: socket.socket, recording: Recording) -> None:
        with client, server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while selector.get_map():
                ready = selector.select(PATIENCE)
                if not ready:
                    break
                for key, _ in ready:
                    try:
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    except OSError:
                        data = b""
                    recording.events.append((time.time_ns(), key.fileobj is client, data))
                    if data:
                        key.data.sendall(data)
                        continue
                    selector.unregister(key.fileobj)
                    try:
                        key.data.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass
        recording.over = True
