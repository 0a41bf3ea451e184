"""HTTP Archive 1.2: recorded requests with their answers, as browsers' tools, mitmproxy and others read and write them.

The format is http://www.softwareishard.com/blog/har-12-spec/. Members that it does not know begin with an underscore:

    _sidestep   of an entry: who has answered, pod, client, trace, the client's TLS, and the target of the request where
                a URL cannot say it (CONNECT, `*`, bytes that no URL has)
    _trailers   of a request: the fields behind its body
    _encoding   of a request's body: base64, for what is no text
    _truncated  of a request's body: it is longer than what was recorded

A file is a head, entries separated by commas, and a tail. Whoever appends an entry writes it over the tail and the tail
behind it, so that the file is valid JSON after each one.

Reading is strict about types and lenient about what is missing: only what a request consists of is needed. A HAR of
somebody else's is hostile: `decode` bounds the size, and the reader of an entry checks what it sends.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

from sidestep.model.errors import ConfigurationError

MAX_FILE: Final = 512 * 1024 * 1024
"""Bytes of a file that is read."""


class Field(msgspec.Struct, frozen=True):
    """A header field, parameter of a query, or cookie."""

    name: str
    value: str = ""


class PostData(msgspec.Struct, frozen=True):
    """A request's body. `_encoding` "base64" is for what is no text."""

    mime_type: str = msgspec.field(name="mimeType", default="")
    text: str | msgspec.UnsetType = msgspec.UNSET
    encoding: str | msgspec.UnsetType = msgspec.field(name="_encoding", default=msgspec.UNSET)
    truncated: bool | msgspec.UnsetType = msgspec.field(name="_truncated", default=msgspec.UNSET)
    """The body is longer than what was recorded."""


class Content(msgspec.Struct, frozen=True):
    """A response's body. Without `text` it was not recorded."""

    size: int = 0
    mime_type: str = msgspec.field(name="mimeType", default="x-unknown")
    text: str | msgspec.UnsetType | None = msgspec.UNSET
    encoding: str | msgspec.UnsetType = msgspec.UNSET
    comment: str | msgspec.UnsetType = msgspec.UNSET


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """A request."""

    method: str
    url: str
    http_version: str = "HTTP/1.1"
    cookies: list[Field] = []
    headers: list[Field] = []
    query_string: list[Field] = []
    post_data: PostData | msgspec.UnsetType = msgspec.UNSET
    headers_size: int = -1
    body_size: int = -1
    trailers: list[Field] = msgspec.field(name="_trailers", default=[])


class Response(msgspec.Struct, frozen=True, rename="camel"):
    """A response. `status` 0: there was none."""

    status: int = 0
    status_text: str = ""
    http_version: str = "HTTP/1.1"
    cookies: list[Field] = []
    headers: list[Field] = []
    content: Content = Content()
    redirect_url: str = msgspec.field(name="redirectURL", default="")
    headers_size: int = -1
    body_size: int = -1


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds. The pod's proxy measures from head to end: all of it is `wait`."""

    send: float | None = 0.0
    wait: float | None = 0.0
    receive: float | None = 0.0


class Tls(msgspec.Struct, frozen=True, omit_defaults=True):
    """The client's TLS, in `_sidestep` (`tunnel.messages.TlsFacts`)."""

    version: str = ""
    cipher: str = ""
    alpn: str = ""
    server_name: str = ""
    client: str = ""
    ja3: str = ""
    ja4: str = ""


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """`_sidestep`."""

    by: str = ""
    handler: str = ""
    pod: str = ""
    port: int = 0
    client: str = ""
    trace: str = ""
    target: str = ""
    whole: bool = True
    tls: Tls | None = None


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """One exchange."""

    request: Request
    response: Response | None = None
    started_date_time: str = ""
    time: float | None = 0.0
    cache: dict[str, object] = {}
    timings: Timings = Timings()
    facts: Facts = msgspec.field(name="_sidestep", default=Facts())


class _Log(msgspec.Struct, frozen=True):
    entries: list[Entry]


class _File(msgspec.Struct, frozen=True):
    log: _Log


TAIL: Final = b"\n]}}\n"


def head(version: str) -> bytes:
    """Return the beginning of a file, written by this version of Sidestep."""
    creator = msgspec.json.encode({"name": "Sidestep", "version": version})
    return b'{"log":{"version":"1.2","creator":' + creator + b',"pages":[],"entries":['


def encode(entry: Entry, *, first: bool) -> bytes:
    """Return an entry as it follows the head, or another entry."""
    return (b"\n" if first else b",\n") + msgspec.json.encode(entry)


def decode(data: bytes, *, subject: str) -> list[Entry]:
    """Return the entries of a file. Raises ConfigurationError."""
    try:
        return msgspec.json.decode(data, type=_File).log.entries
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"is no HTTP Archive: {error}", subject=subject) from error


def body_text(body: bytes) -> tuple[str, str]:
    """Return a body as text and its encoding, "" or "base64"."""
    try:
        return body.decode(), ""
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"


def body_bytes(text: str, encoding: str | msgspec.UnsetType) -> bytes | None:
    """Return the bytes of a body; None for an encoding that is not known, or is wrong."""
    if encoding == "base64":
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return None
    return None if encoding else text.encode("utf-8", "replace")
