"""A TLS handler on real sockets, in threads, with half-close: what the event loop's own TLS server cannot do."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.harness.authority import Certificate


def server_context(certificate: Certificate, folder: Path, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    certificate.write(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class Server:
    """Accepts one connection after another and runs `serve(connection, server)` on each; `port` is where."""

    def __init__(self, serve: Callable[[socket.socket], Any], tls: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._serve = serve
        self._tls = tls
        self.port: int = self._listener.getsockname()[1]
        self.names: list[str | None] = []
        self.protocols: list[str | None] = []
        self._thread = threading.Thread(target=self._run, name="test-handler", daemon=True)
        if tls is not None:
            tls.sni_callback = lambda _sock, name, _context: self.names.append(name)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            with connection:
                self._one(connection)

    def _one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is None:
                self._serve(connection)
                return
            with self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secure:
                secure.do_handshake()
                self.protocols.append(secure.selected_alpn_protocol())
                self._serve(secure)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)


@contextlib.contextmanager
def serving(serve: Callable[[Any], Any], tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(serve, tls)
    try:
        yield server
    finally:
        server.close()
