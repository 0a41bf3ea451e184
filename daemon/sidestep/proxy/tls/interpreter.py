"""Whether this interpreter's `ssl` has the private interfaces that the proxy rests on, found by using them.

    SSLContext._wrap_socket    makes a connection object without the wrapper `SSLSocket` (`proxy.io.stream`)
    _SSLContext._msg_callback  shows handshake messages of the peer (`credentials.watch_certificate_requests`)
    ERR_clear_error            of the OpenSSL that `ssl` uses is found through it (`proxy.io.error_queue`)

Python promises none of them. The daemon checks them once when it starts, before any pod is touched, and does not start
where one is missing: apps get their traffic. Only the standard library, `sidestep.model` and `sidestep.proxy.io` are
imported, so that the test of each Python version needs no package.
"""

from __future__ import annotations

import socket
import ssl
import sys
from typing import Any, Final

from sidestep.model.errors import ConfigurationError
from sidestep.proxy.io import error_queue
from sidestep.proxy.io.stream import TlsStream

TESTED: Final = "CPython 3.11 to 3.14"
"""The interpreters on which the tests have shown these interfaces."""

_CONNECTION: Final = (
    "context", "do_handshake", "getpeercert", "read", "selected_alpn_protocol", "session", "session_reused", "shutdown",
    "version", "write",
)  # fmt: skip
"""What the proxy uses of a connection object."""
_HANDSHAKE, _CLIENT_HELLO = 22, 1
"""Record and message type of RFC 8446 sections 5.1 and 4."""


def set_message_callback(context: ssl.SSLContext, callback: Any) -> None:
    """Let `callback(owner, direction, version, content, message, data)` see each message of the context's connections.

    Sets OpenSSL's callback (SSL_CTX_set_msg_callback(3)) past the Python wrapper, which converts every argument to an
    enum. Raises AttributeError where `ssl` has no such interface.
    """
    ssl.SSLContext.__mro__[1]._msg_callback.__set__(context, callback)  # type: ignore[attr-defined] # noqa: SLF001


def check_ssl() -> None:
    """Begin a handshake on a socketpair by the private interfaces. Raises ConfigurationError where one is missing.

    It takes less than a millisecond, beside making a context; nothing answers.
    """
    seen: list[tuple[object, ...]] = []

    def on_message(owner: object, direction: str, _version: int, content: int, message: int, _data: bytes) -> None:
        seen.append((owner, direction, content, message))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        try:
            set_message_callback(context, on_message)
            stream = TlsStream(ours, context, server_side=False, server_name="check.test")
            absent = [name for name in _CONNECTION if not hasattr(stream.state, name)]
            waiting = stream.handshake()
            stream.state.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            stream.close()
            error_queue.take_first()
        except (AttributeError, TypeError, ValueError, OSError) as error:
            raise _unfit(str(error)) from error
        if absent:
            raise _unfit(f"a connection has no {', '.join(absent)}")
        if waiting != 1 or (stream, "write", _HANDSHAKE, _CLIENT_HELLO) not in seen:
            raise _unfit("a handshake shows no message to the callback")


def _unfit(reason: str) -> ConfigurationError:
    version = ".".join(str(each) for each in sys.version_info[:3])
    return ConfigurationError(
        f"its ssl module lacks what TLS interception rests on ({reason}); tested: {TESTED}",
        subject=f"Python {version} with {ssl.OPENSSL_VERSION}",
    )
