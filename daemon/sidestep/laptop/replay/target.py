"""Where requests are replayed to: an address as the user writes it, and connections there.

Over TLS the server chooses among the protocols that are offered (ALPN); in clear text HTTP/2 is spoken with prior
knowledge (RFC 9113, section 3.3).
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from sidestep.aio.client_tls import default_client_context
from sidestep.aio.time_limit import time_limit
from sidestep.laptop.replay.message import ReplayError
from sidestep.model.errors import ConfigurationError

_PORTS: Final = {"http": 80, "https": 443}


class Target(msgspec.Struct, frozen=True):
    """A server. `context` is None in clear text."""

    host: str
    port: int
    context: ssl.SSLContext | None

    @property
    def scheme(self) -> bytes:
        """As HTTP/2 names it."""
        return b"http" if self.context is None else b"https"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme.decode()}://{host}:{self.port}"

    async def connect(self, *, h2: bool, within: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """Connect; returns the streams and whether they speak HTTP/2. Raises ReplayError."""
        if self.context is not None:
            self.context.set_alpn_protocols(["h2", "http/1.1"] if h2 else ["http/1.1"])
        name = self.host if self.context is not None else None
        try:
            async with time_limit(within):
                reader, writer = await asyncio.open_connection(
                    self.host, self.port, ssl=self.context, server_hostname=name
                )
        except TimeoutError as error:
            raise ReplayError(f"{self} did not take the connection within {within:g} s") from error
        except ssl.SSLError as error:
            raise ReplayError(f"TLS with {self} failed: {error.reason or error}") from error
        except OSError as error:
            raise ReplayError(f"{self} cannot be reached: {error.strerror or error}") from error
        if self.context is None:
            return reader, writer, h2
        tls = writer.get_extra_info("ssl_object")
        return reader, writer, tls is not None and tls.selected_alpn_protocol() == "h2"


def parse_target(text: str, *, ca: Path | None, insecure: bool) -> Target:
    """Read `http://HOST[:PORT]` or `https://…`. Raises ConfigurationError."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme not in _PORTS or parts.path not in ("", "/") or parts.query or parts.username:
        raise ConfigurationError(
            "is no address: write http://HOST:PORT or https://HOST:PORT", subject="--to", value=text[:200]
        )
    context = None
    if parts.scheme == "https":
        try:
            context = default_client_context(cafile=ca)
        except OSError as error:
            raise ConfigurationError("holds no CA certificate in PEM form", subject="--ca", value=str(ca)) from error
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    return Target(host, port or _PORTS[parts.scheme], context)
