"""Who may ask the page's server: a browser that has the address which the command printed, and nobody else.

Other programs and other users of this machine can reach 127.0.0.1, and so can every page that the developer's browser
has open. Three checks, each of them enough against one of these:

    token     the first part of the path, 32 bytes of the system's randomness: other users, other programs
    Host      127.0.0.1 or localhost with our port: names that an attacker's resolver points here (DNS rebinding)
    Origin    ours where there is one, and there must be one in what changes something: other pages of the browser
              (RFC 6454; Fetch, section 3.1: browsers send it with every POST). `Sec-Fetch-Site` must not be another
              site's (Fetch Metadata).

A request that fails one of them gets 403 and no reason: who has no token learns nothing of sessions.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from typing import Final

_SAME: Final = frozenset({"same-origin", "none", ""})
_SAFE: Final = frozenset({"GET", "HEAD"})
_TOKEN_BYTES: Final = 32


class Guard:
    """The checks for one server. `port` is the one it listens on."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(_TOKEN_BYTES)
        self._hosts = frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})
        self._origins = frozenset(f"http://{host}" for host in self._hosts)
        self.address = f"http://127.0.0.1:{port}/{self.token}/"

    def allows(self, method: str, token: str, headers: Mapping[str, str]) -> bool:
        """Whether a request with this first part of its path may be answered. Names of headers are case-insensitive in
        the mapping."""
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode()):
            return False
        if headers.get("Host", "").lower() not in self._hosts:
            return False
        origin = headers.get("Origin")
        if origin is None and method not in _SAFE:
            return False
        if origin is not None and origin.lower() not in self._origins:
            return False
        return headers.get("Sec-Fetch-Site", "").lower() in _SAME
