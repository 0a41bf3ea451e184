"""A program for any CPython: private_ssl.py DAEMON-FOLDER IDENTITY.pem. Exit status 0 when `ssl` does what we rest on.

It imports the standard library and those modules of ours that need no package, so that it runs on an interpreter for
which nothing is installed. The PEM file has a key and a self-signed certificate. Every wait ends after DEADLINE.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from typing import Any

DEADLINE = 20.0


def serve(context: ssl.SSLContext, theirs: socket.socket, failures: list[BaseException]) -> None:
    """The app: send back what comes until close_notify, and answer that with one byte more."""
    try:
        theirs.settimeout(DEADLINE)
        with context.wrap_socket(theirs, server_side=True, suppress_ragged_eofs=False) as sock:
            while data := sock.recv(65536):
                sock.sendall(data)
            sock.sendall(b".")
            sock.unwrap()
    except (OSError, ValueError) as error:
        failures.append(error)


class Pair:
    """The app's and the proxy's context for one version of TLS."""

    def __init__(self, identity: str, version: ssl.TLSVersion, *, asks: bool) -> None:
        self.asks = asks
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(identity)
        self.server.set_alpn_protocols(["h2"])
        if asks:
            self.server.load_verify_locations(identity)
            self.server.verify_mode = ssl.CERT_OPTIONAL
        self.client, self.quiet = self._client(version), self._client(version)
        self.asked: list[Any] = []
        from sidestep.proxy.tls.interpreter import set_message_callback

        set_message_callback(self.client, self._on_message)

    def _client(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        context.set_alpn_protocols(["h2"])
        return context

    def _on_message(self, owner: Any, direction: str, version: int, content: int, message: int, data: bytes) -> None:
        if (direction, content, message) == ("read", 22, 13):
            assert isinstance(version, int)
            assert isinstance(data, bytes)
            self.asked.append(owner)

    def talk(self, session: ssl.SSLSession | None) -> ssl.SSLSession:
        """One connection by the private interfaces; returns its session."""
        ours, theirs = socket.socketpair()
        failures: list[BaseException] = []
        app = threading.Thread(target=serve, args=(self.server, theirs, failures))
        app.start()
        kept = self._use(ours, session)
        app.join(DEADLINE)
        assert not failures, failures
        return kept

    def _use(self, ours: socket.socket, session: ssl.SSLSession | None) -> ssl.SSLSession:
        from sidestep.proxy.io.stream import TlsStream

        ours.settimeout(DEADLINE)
        self.asked.clear()
        stream = TlsStream(ours, self.client, server_side=False, server_name="app.test", session=session)
        while stream.handshake():
            pass
        assert stream.state.version() == self.client.minimum_version.name.replace("_", ".")
        assert stream.state.selected_alpn_protocol() == "h2"
        assert self.asked == ([stream] if self.asks else [])
        stream.state.context = self.quiet
        assert stream.state.getpeercert(True)
        for size in (1, 16384, 100_000):
            assert stream.write(b"x" * size) == size
            received = 0
            while received < size:
                received += len(stream.read() or b"")
        assert stream.state.session_reused is (session is not None)
        stream.state.context = self.client
        kept: ssl.SSLSession = stream.state.session
        # A half-close: close_notify leaves, and what the peer still sends is read up to its own.
        ours.setblocking(False)
        assert stream.finish(notify=True)
        ours.settimeout(DEADLINE)
        assert [stream.read(), stream.read()] == [b".", b""]
        assert not stream.ragged
        stream.close()
        return kept


def shaken(identity: str) -> tuple[Any, Any]:
    """Both ends of a connection in this thread."""
    from sidestep.proxy.io.stream import TlsStream

    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server.load_cert_chain(identity)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    ends = TlsStream(ours, client, server_side=False), TlsStream(theirs, server, server_side=True)
    for _ in range(10):
        if ends[0].handshake() + ends[1].handshake() == 0:
            break
    assert ends[0].read() is None  # session tickets
    return ends


def break_one(identity: str) -> None:
    """A connection whose peer is gone leaves nothing in OpenSSL that another connection takes for its own failure."""
    broken, other = shaken(identity), shaken(identity)
    broken[1].close()
    try:
        broken[0].write(b"nobody reads this")
        raise AssertionError("nobody was there to take it")
    except OSError:
        assert other[0].read() is None
    for stream in (broken[0], *other):
        stream.close()


def main(daemon: str, identity: str) -> None:
    """Both versions of TLS, with and without a question for a certificate; what resumes is tried a second time."""
    sys.path.insert(0, daemon)
    from sidestep.proxy.tls.interpreter import check_ssl

    check_ssl()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        Pair(identity, version, asks=True).talk(None)
        plain = Pair(identity, version, asks=False)
        plain.talk(plain.talk(None))
    break_one(identity)
    print(f"CPython {sys.version.split()[0]}, {ssl.OPENSSL_VERSION}")


if __name__ == "__main__":
    main(*sys.argv[1:])
