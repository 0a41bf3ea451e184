"""Feeds one body to the rules: decoded, in pieces of any size, within bounds.

A body without an encoding is fed to its end, whatever its length: rules search it with a window that slides
(`policy.pattern_set`). An encoded one is decoded up to `InspectionLimits.decoded` bytes. Of a gRPC call each message is
fed for itself, and decoded up to as many bytes if it is compressed. `reason` says why a body cannot be decoded, or not
any further; nothing that it decodes to is fed from then on.

`file` hashes what a body decodes to, in case a rule finds something in it; not of a gRPC call, which is many messages.

The body of a request that is encoded, or of gRPC, is fed as it was sent, too, because many apps take any body as it is:
to its end, whether or not it can be decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.inspection.body_file import BodyFile
from sidestep.protocols.decoding import Bounds, Decoder
from sidestep.protocols.grpc_messages import GrpcMessages, carries_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.inspection.limits import InspectionLimits
    from sidestep.policy.route import Fields

INFLATER: Final = 48 * 1024
"""Bytes of a zlib decompressor, once it has a window (RFC 1950), and of Python's objects around it."""
_ENCODING: Final = b"content-encoding"
_NAME: Final = len(_ENCODING)
_IDENTITY: Final = frozenset((b"", b"identity"))


def is_plain(fields: Fields) -> bool:
    """Whether a body is fed as it was sent, as one text: it has no encoding, and is no stream of messages."""
    return not _encodings(fields)[1] and not _carries_messages(fields)


def _encodings(fields: Fields) -> tuple[list[bytes], bool]:
    """The values of Content-Encoding, and whether one of them changes the body."""
    # Asked for each message whose body a rule wants: names are told apart by their length first.
    values = [value for name, value in fields if len(name) == _NAME and name.replace(b"_", b"-") == _ENCODING]
    tokens = b",".join(values).lower().split(b",") if values else ()
    return values, any(token.strip(b" \t") not in _IDENTITY for token in tokens)


def _carries_messages(fields: Fields) -> bool:
    return carries_messages([value for name, value in fields if name == b"content-type"])


class InspectedBody:
    """One body. `feed` gets what it decodes to; `fields` are those of its message, with lower-case names.

    `message_end` is called after each message of a gRPC call. `feed_sent`, of a request, gets a body as it was sent if
    that differs.
    """

    __slots__ = (
        "_began", "_decoder", "_feed", "_feed_sent", "_message_end", "_messages", "file", "is_told", "length", "reason",
    )  # fmt: skip

    def __init__(
        self,
        fields: Fields,
        feed: Callable[[bytes], None],
        message_end: Callable[[], None],
        limits: InspectionLimits,
        *,
        feed_sent: Callable[[bytes], None] | None = None,
        has_file: bool = False,
    ) -> None:
        values, is_encoded = _encodings(fields)
        self._decoder = Decoder(values, Bounds(limits.decoded)) if is_encoded else None
        self._messages: GrpcMessages | None = None
        if _carries_messages(fields):
            named = [value for name, value in fields if name == b"grpc-encoding"]
            self._messages = GrpcMessages(named, Bounds(limits.decoded))
        self.file = BodyFile(limits.window) if has_file and self._messages is None else None
        self._feed = feed
        self._message_end = message_end
        self._feed_sent = feed_sent if is_encoded or self._messages is not None else None
        self._began = False
        self.length = None if is_encoded or self.file is None else _length(fields)
        """Bytes of the whole body, of one that may be told as a file and has no encoding; None: not known."""
        self.reason: str | None = None
        self.is_told = False
        """Whether whoever drives this has told the reason."""

    @property
    def memory(self) -> int:
        """Bytes that decoders take, roughly."""
        if not self._began:
            return 0
        layers = 0 if self._decoder is None else self._decoder.layers
        kept = 0 if self.file is None else self.file.held
        return kept + INFLATER * (layers + (self._messages is not None and self._messages.is_decoding))

    @property
    def is_over(self) -> bool:
        """Whether nothing more of the body is read."""
        return self.reason is not None and self._feed_sent is None

    @property
    def pending(self) -> int | None:
        """How many of the last bytes that were read belong to a message that has not ended.

        None if the body is not one of messages, or is encoded as a whole: then only its end tells that it is clean.
        """
        messages = self._messages
        return None if messages is None or self._decoder is not None or not messages.is_framed else messages.pending

    def read(self, data: bytes) -> None:
        """Take the next bytes, without the framing of the protocol."""
        if self.is_over or not data:
            return
        self._began = True
        if self._feed_sent is not None:
            self._feed_sent(data)
            if self.reason is not None:
                return
        decoder = self._decoder
        if decoder is not None:
            data = decoder.feed(data)
            self.reason = decoder.reason
        if data:
            self._decoded(data)

    def end(self) -> None:
        """Learn that the body is whole. An empty one is, whatever its encoding: answers to HEAD name one."""
        decoder, self._decoder = self._decoder, None
        if decoder is None or not self._began or self.reason is not None:
            return
        data = decoder.finish()
        self.reason = decoder.reason
        if data:
            self._decoded(data)

    def _decoded(self, data: bytes) -> None:
        """Take bytes without Content-Encoding."""
        messages = self._messages
        if messages is None:
            if self.file is not None:
                self.file.read(data)
            self._feed(data)
            return
        for piece, ends in messages.feed(data):
            if piece:
                self._feed(piece)
            if ends:
                self._message_end()
        self.reason = self.reason or messages.reason


def _length(fields: Fields) -> int | None:
    """The value of Content-Length; None without a plain one."""
    value = next((value for name, value in fields if name == b"content-length"), b"")
    return int(value) if value.isdigit() and len(value) < 16 else None
