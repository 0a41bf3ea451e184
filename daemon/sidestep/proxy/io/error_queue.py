"""OpenSSL's queue of errors of this thread, which Python leaves filled after some failures.

All TLS connections of a thread share the queue. It must be empty before a call on any of them, because OpenSSL tells
from it why a call did not succeed (SSL_get_error(3)). `ssl` empties it when it raises SSLError. When OpenSSL reports an
error of a system call in the queue (ERR_LIB_SYS; OpenSSL 3.5 does so for a write, also for an alert during a read),
newer versions of `ssl` raise another OSError and leave the queue as it is: CPython 3.13.5 was measured to. Then each
later call that would wait for its peer, on every connection, raises the same error, until a handshake or a session
ticket empties the queue.

So whoever gets an OSError from a connection object calls `take_first`.
"""

from __future__ import annotations

import _ssl
import ctypes
from typing import Final

UNEXPECTED_EOF: Final = 20 << 23 | 294
"""The code of ERR_LIB_SSL with SSL_R_UNEXPECTED_EOF_WHILE_READING: a connection ended without close_notify."""

_openssl: Final = ctypes.PyDLL(getattr(_ssl, "__file__", None))
"""Finds the symbols of the OpenSSL that `ssl` uses: dlsym(3) looks in a library and in what it depends on."""


def take_first() -> int:
    """Empty the queue; return the code of its first error, 0 when it was empty (ERR_get_error(3)).

    Raises AttributeError where `ssl` has OpenSSL built in and hides it. Codes have 32 bits, those of system errors are
    negative here.
    """
    first: int = _openssl.ERR_peek_error()
    _openssl.ERR_clear_error()
    return first
