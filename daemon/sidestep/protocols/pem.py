"""PEM text (RFC 7468) as OpenSSL 3 reads it: the blocks of a file, in order, and what is wrong with them.

Real files hold more than RFC 7468 allows: text between the blocks, CRLF, a byte order mark, long or indented lines,
private keys beside certificates. Servers load them with OpenSSL, so this reader follows OpenSSL's
(crypto/pem/pem_lib.c: get_name, get_header_and_data, PEM_read_bio_ex):

    outside    A line begins a block if it starts with `-----BEGIN ` and ends with `-----` (white space behind it does
               not count). Every other line is passed over. A UTF-8 byte order mark before the first line is ignored.
    body       An empty line ends the header fields (RFC 1421); without one, every line is data. After an empty line a
               data line has at most 64 characters, and only the last one fewer.
    end        `-----END ` with the label of the beginning. Anything else that starts with `-----END ` breaks the block.

A broken block has a `problem` and no `der`. Pure: bytes in, blocks out. Linear in the text; `limit` bounds the blocks.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

CERTIFICATES: Final = frozenset({"CERTIFICATE", "X509 CERTIFICATE"})
"""Labels of a certificate in a chain."""
TRUSTED: Final = "TRUSTED CERTIFICATE"
"""Label of a certificate with OpenSSL's trust settings behind it."""
KEYS: Final = frozenset(
    {"PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "ANY PRIVATE KEY"}
)
"""Labels of a private key: PKCS #8, PKCS #1, SEC 1, DSA."""

_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"
_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LINE = 254
"""Bytes that OpenSSL takes for one line; the rest of a longer one is the next line."""
_STRICT_LINE = 64
_TRIMMED = bytes(range(33))
"""White space and control characters, which end a line without belonging to it."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Block:
    """One block. `number` counts from 1; `der` is empty when `problem` says why it cannot be read."""

    number: int
    label: str
    der: bytes = field(default=b"", repr=False)
    problem: str = ""
    encrypted: bool = False
    """A private key under a passphrase."""

    @property
    def name(self) -> str:
        """How conditions name it: `block 2 (CERTIFICATE)`."""
        return f"block {self.number} ({self.label})"


def blocks(text: bytes, *, limit: int) -> Iterator[Block]:
    """Yield the blocks of a file, at most `limit` + 1: the last one shows that there are too many. Never raises."""
    lines = _Lines(text)
    for number in range(1, limit + 2):
        label = _beginning(lines)
        if label is None:
            return
        yield _body(lines, number, label)


def encode(label: str, der: bytes) -> bytes:
    """One block of PEM text."""
    body = binascii.b2a_base64(der, newline=False)
    rows = b"".join(body[at : at + _STRICT_LINE] + b"\n" for at in range(0, len(body), _STRICT_LINE))
    name = label.encode()
    return b"-----BEGIN " + name + b"-----\n" + rows + b"-----END " + name + b"-----\n"


def foreign(text: bytes) -> str:
    """Return why a file has no block, as a text for people; empty when it cannot be told."""
    if text.startswith(_WIDE_MARKS) or text[1:2] == b"\0":
        return "it is UTF-16 text; PEM is ASCII"
    if text.startswith(b"0") and not text.isascii():
        return "it is DER; PEM is text"
    if re.search(rb"(?m)^[ \t]+-----BEGIN ", text):
        return "its lines are indented; -----BEGIN has to begin a line"
    if _BEGIN in text and b"\n" not in text:
        return "its lines do not end in line feeds"
    return ""


class _Lines:
    """The lines as OpenSSL meets them; a long one comes in pieces."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def next(self) -> bytes | None:
        """The next line, with its line feed if it has one; None at the end."""
        if self._at >= len(self._text):
            return None
        end = self._text.find(b"\n", self._at, self._at + _LINE)
        end = min(self._at + _LINE, len(self._text)) if end < 0 else end + 1
        line, self._at = self._text[self._at : end], end
        if b"\0" in line:
            # OpenSSL measures a line with strlen(3); an empty one is its end of the file.
            line = line.partition(b"\0")[0]
            if not line:
                self._at = len(self._text)
                return None
        return line


def _beginning(lines: _Lines) -> str | None:
    """The label of the next block; None when there is none."""
    first = True
    while (line := lines.next()) is not None:
        if first:
            line = line.removeprefix(_MARK)
            first = False
        line = line.rstrip(_TRIMMED)
        if line.startswith(_BEGIN) and line.endswith(_DASHES) and len(line) >= len(_BEGIN) + len(_DASHES):
            return line[len(_BEGIN) : -len(_DASHES)].decode("ascii", "replace")
    return None


def _body(lines: _Lines, number: int, label: str) -> Block:
    header: list[bytes] = []
    data: list[bytes] = []
    rows = header
    whole = True  # whether the line before ended in a line feed
    short = False
    end = _END + label.encode("ascii", "replace") + _DASHES
    while (line := lines.next()) is not None:
        row = line.rstrip(_TRIMMED)
        began, whole = whole, line.endswith(b"\n") or len(line) < _LINE
        if not row and began:
            if rows is data:
                return Block(number, label, problem="it has an empty line within its data")
            rows = data
        elif row.startswith(_END):
            if row != end:
                return Block(number, label, problem="its -----END line names something else")
            return _decoded(number, label, header, data, headed=rows is data)
        elif short:
            return Block(number, label, problem="it has a short line within its data")
        else:
            rows.append(row)
            if rows is data:
                short = len(row) < _STRICT_LINE
                if len(row) > _STRICT_LINE:
                    return Block(number, label, problem="its lines are longer than 64 characters")
    return Block(number, label, problem="it has no -----END line")


def _decoded(number: int, label: str, header: list[bytes], data: list[bytes], *, headed: bool) -> Block:
    fields, body = (b"\n".join(header), b"".join(data)) if headed else (b"", b"".join(header))
    encrypted = label == "ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in fields
    if fields and not fields.startswith(b"Proc-Type:"):
        return Block(number, label, problem="it has header fields or an empty line within its data")
    # OpenSSL takes a dash for the end of the data.
    body = body.translate(None, _BLANK).partition(b"-")[0]
    if not _BASE64.fullmatch(body) or len(body) % 4:
        return Block(number, label, problem="its data is not base64", encrypted=encrypted)
    der = binascii.a2b_base64(body)  # does not raise: whole groups of four, padding at the end only
    if not der:
        return Block(number, label, problem="it has no data")
    return Block(number, label, der, encrypted=encrypted)
