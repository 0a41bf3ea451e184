"""What a session asks of a pod's world (PodAccess), and how it gets it: messages and streams of the tunnel.

The daemon stays the one who opens streams, so all that is asked has the flow control and the bounds of diverted
connections:

    extended CONNECT, `sidestep-access`       once, by the daemon: lines of JSON in both directions, as long as the
                                              session lasts
    extended CONNECT, `sidestep-access-data`  for each request that is granted, with its number; the bytes follow

    asked ----> granted: a stream with its number, which ends by itself
       |                         or by the node: the stream is reset, and a line before says why
       |------> refused: a line with its number, and the reason
       `------> cancelled by the one who asked; a stream that comes nevertheless is reset

Numbers are the session's own, from 1, and never used twice in one tunnel. Only the daemon's side judges: a session asks
for what it likes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, TypeVar

import msgspec

from sidestep.config.schema_fault import fault_of
from sidestep.model.errors import PeerError
from sidestep.tunnel.stream import Headers, Stream

PROTOCOL_ACCESS = "sidestep-access"
"""`:protocol` of the lines."""
PROTOCOL_ACCESS_DATA = "sidestep-access-data"
"""`:protocol` of what was asked for."""
NUMBER = "sidestep-number"
"""Request header with the number of the request that is granted."""
MAX_LINE = 64 * 1024
"""Bytes of a line."""
MAX_NUMBER = 2**53 - 1
MAX_PATHS = 64
"""Folders of one snapshot."""
DEFAULT_FILES, MAX_FILES = 256 * 1024 * 1024, 4 * 1024 * 1024 * 1024
"""Bytes of one snapshot."""

Number = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
_Pod = Annotated[str, msgspec.Meta(max_length=507)]
_Container = Annotated[str, msgspec.Meta(max_length=63)]


class Line(msgspec.Struct, frozen=True, tag_field="access"):
    """Base of the lines."""


# --- from the session -----------------------------------------------------------------------------------------------


class Environment(Line, frozen=True, tag="environment"):
    """The variables that the main process of a container was started with. Granted: as in /proc/PID/environ
    (proc_pid_environ(5)), each ended by NUL."""

    number: Number
    pod: _Pod
    """`namespace/name`."""
    container: _Container = ""
    """"": the one of the resource, else the pod's default."""


class Files(Line, frozen=True, tag="files"):
    """A snapshot of files of a container. Granted: `protocols.file_frames`."""

    number: Number
    pod: _Pod
    container: _Container = ""
    paths: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=4096)], ...], msgspec.Meta(max_length=MAX_PATHS)
    ] = ()
    """Absolute; none: what is mounted in the container."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_FILES)] = DEFAULT_FILES


class Connect(Line, frozen=True, tag="connect"):
    """A connection from the pod's network namespace. Granted: once it is made; its bytes, or datagrams as capsules
    (`protocols.udp`)."""

    number: Number
    pod: _Pod
    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    """An address or a name; names are looked up as the pod does."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"


class Cancel(Line, frozen=True, tag="cancel"):
    """The request of this number is not wanted any more."""

    number: Number


# --- from the daemon ------------------------------------------------------------------------------------------------


class Ready(Line, frozen=True, tag="ready"):
    """The pods of this node that can be used now. A newer one replaces it."""

    pods: Annotated[tuple[_Pod, ...], msgspec.Meta(max_length=1024)]


class Refused(Line, frozen=True, tag="refused"):
    """The request of this number is refused."""

    number: Number
    reason: Annotated[str, msgspec.Meta(max_length=1024)]


class Ended(Line, frozen=True, tag="ended"):
    """The node has ended what it had granted for this number, which breaks."""

    number: Number
    reason: Annotated[str, msgspec.Meta(max_length=1024)]


Asked = Environment | Files | Connect | Cancel
Told = Ready | Refused | Ended

_L = TypeVar("_L")


class Lines:
    """Splits received bytes into lines. Raises PeerError for one of more than MAX_LINE bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if max(map(len, (self._rest, *lines))) > MAX_LINE:
            raise PeerError(f"a line about a pod's world has more than {MAX_LINE} bytes")
        return lines


def encode_line(line: Line) -> bytes:
    """Encode a line, with its end."""
    return msgspec.json.encode(line) + b"\n"


def decode_line(data: bytes, kind: type[_L]) -> _L:
    """Decode one line. Raises PeerError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"a line about a pod's world cannot be read: {fault_of(error)}") from error


def number_of(headers: Headers) -> int:
    """Return the number of the request that a stream grants. Raises PeerError."""
    values = [value for name, value in headers if name == NUMBER]
    text = values[0] if len(values) == 1 else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 16) or not 0 < int(text) <= MAX_NUMBER:
        raise PeerError(f"a stream was opened without a usable {NUMBER} header")
    return int(text)


class AccessClient(Protocol):
    """The session's end. `tunnel` is the same object for all streams of one tunnel."""

    async def talk(self, tunnel: object, stream: Stream) -> None:
        """Answer and use the stream of lines until it ends. Raises PeerError."""

    async def take(self, tunnel: object, stream: Stream) -> None:
        """Answer and use a stream that grants a request, until it is over. Raises PeerError."""


class NoAccess:
    """The `AccessClient` of a session that uses nothing of a pod's world: it refuses both."""

    async def talk(self, tunnel: object, stream: Stream) -> None:
        """As AccessClient.talk."""
        del tunnel
        stream.respond(501, end_stream=True)

    async def take(self, tunnel: object, stream: Stream) -> None:
        """As AccessClient.take."""
        del tunnel
        stream.respond(501, end_stream=True)
