"""Description of one diverted connection, sent by the daemon when it opens a stream (extended CONNECT, RFC 8441).

The fields travel as request headers. A strict parser reads them: each field present once, bounded, and of its type.
Unknown fields are ignored, so that later versions may add some.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

import msgspec

from sidestep.model.errors import PeerError
from sidestep.tunnel.stream import Headers

PROTOCOL = "sidestep-tcp"
"""`:protocol` of a diverted connection."""
PROTOCOL_CAPTURE = "sidestep-capture"
"""`:protocol` of the frames of a captured connection (`protocols.capture_frames`)."""
PROTOCOL_RECORDS = "sidestep-records"
"""`:protocol` of the stream of a session's records of inspection: EVE, one JSON object on a line."""
PROTOCOL_UDP = "connect-udp"
"""`:protocol` of the datagrams of one client, as capsules (RFC 9298)."""
REASON = "sidestep-reason"
"""Response header with the reason, in one line, why there is no handler connection."""
MAX_REASON = 300
"""Characters of a reason."""

_UID = re.compile(r"[0-9A-Za-z-]{1,64}")
_POD = re.compile(r"[a-z0-9.-]{1,253}/[a-z0-9.-]{1,253}")
_NUMBER = re.compile(r"[0-9]{1,5}")
_SERVER_NAME = re.compile(r"[!-~]{0,255}")
_APPLICATION = frozenset({"http/1.1", "h2", "tcp", "udp"})


class StreamOpening(msgspec.Struct, frozen=True):
    """One diverted connection, or one that is captured.

    `protocol` is what the client speaks: "http/1.1", "h2", "tcp" or "udp". `tls` tells whether the client's connection
    was decrypted. `server_name` is its SNI, "" without one. `client` is its address as text. `pod` is `namespace/name`,
    `port` the container port.
    """

    intercept: str
    pod: str
    port: int
    client: str
    client_port: int
    protocol: str
    tls: bool
    server_name: str = ""
    capture: bool = False
    """The stream carries frames of a capture of the connection."""

    def to_headers(self) -> Headers:
        """Return the request headers."""
        return (
            (":method", "CONNECT"),
            (":protocol", self._stream_protocol),
            (":scheme", "https"),
            (":authority", "session"),
            (":path", f"/v1/intercepts/{self.intercept}"),
            ("sidestep-intercept", self.intercept),
            ("sidestep-pod", self.pod),
            ("sidestep-port", str(self.port)),
            ("sidestep-client", self.client),
            ("sidestep-client-port", str(self.client_port)),
            ("sidestep-protocol", self.protocol),
            ("sidestep-tls", "1" if self.tls else "0"),
            ("sidestep-server-name", self.server_name),
        )

    @property
    def _stream_protocol(self) -> str:
        if self.capture:
            return PROTOCOL_CAPTURE
        return PROTOCOL_UDP if self.protocol == "udp" else PROTOCOL

    def check(self) -> None:
        """Raise PeerError unless the other end accepts these fields."""
        self.from_headers(self.to_headers())

    @classmethod
    def from_headers(cls, headers: Headers) -> StreamOpening:
        """Parse request headers. Raises PeerError with the first missing or invalid field."""
        fields = _HeaderFields(headers)
        return cls(
            intercept=fields.text("sidestep-intercept", _UID),
            pod=fields.text("sidestep-pod", _POD),
            port=fields.number("sidestep-port"),
            client=fields.address("sidestep-client"),
            client_port=fields.number("sidestep-client-port"),
            protocol=fields.choice("sidestep-protocol", _APPLICATION),
            tls=fields.choice("sidestep-tls", frozenset({"0", "1"})) == "1",
            server_name=fields.text("sidestep-server-name", _SERVER_NAME),
            capture=(":protocol", PROTOCOL_CAPTURE) in headers,
        )


class _HeaderFields:
    """Header fields, each at most once."""

    def __init__(self, headers: Headers) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in headers:
            self._values.setdefault(name, []).append(value)

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        values = self._values.get(name, ())
        if len(values) != 1 or not pattern.fullmatch(values[0]):
            raise PeerError(f"a stream was opened without a usable {name} header")
        return values[0]

    def number(self, name: str) -> int:
        value = int(self.text(name, _NUMBER))
        if value > 0xFFFF:
            raise PeerError(f"a stream was opened without a usable {name} header")
        return value

    def choice(self, name: str, allowed: frozenset[str]) -> str:
        value = self.text(name, _SERVER_NAME)
        if value not in allowed:
            raise PeerError(f"a stream was opened with an unknown {name}")
        return value

    def address(self, name: str) -> str:
        value = self.text(name, _SERVER_NAME)
        try:
            ip_address(value)
        except ValueError as error:
            raise PeerError(f"a stream was opened without a usable {name} header") from error
        return value


def clean_reason(text: str) -> str:
    """Return one bounded line of printable ASCII, suitable for a header, a log and a terminal."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:MAX_REASON])
