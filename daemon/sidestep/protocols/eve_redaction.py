"""What of a request or response may stand in a record, as text of bounded size.

Removed always: values of fields that carry credentials, user names and passwords in URLs, what follows `#`. Removed
unless the policy allows them: the values of a query, also in fields that hold a URL. Removed on request: the values of
further fields. Bytes that are not UTF-8 become escapes (`\\xff`); control characters are left to the JSON encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from sidestep.model.secret_fields import REDACTED, SECRET

MAX_URL: Final = 2048
"""Bytes of a URL that are kept."""
MAX_VALUE: Final = 1024
"""Bytes of a field's name or value that are kept."""
MAX_HEAD: Final = 8192
"""Bytes of names and values of one head that are kept; the rest of its fields is left out."""
CUT: Final = "…"
"""Ends a text that was cut."""

_URLS: Final = frozenset((b"referer", b"location", b"content-location", b"link", b":path", b"x-original-url",
                          b"x-rewrite-url", b"x-forwarded-uri", b"x-original-uri", b"refresh"))  # fmt: skip
"""Names of fields that hold a URL."""
_CREDENTIALS: Final = re.compile(rb"^((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)?[^/?#]*@")
"""User name and password before a host, in the absolute and the authority form (RFC 3986 section 3.2.1)."""
is_plain: Final = re.compile(rb"[!\"$->A-~]*").fullmatch
"""Matches a URL of which nothing is removed: ASCII without @, # and ?."""
before_value: Final = re.compile(rb"(/(?:[!\"$-.0->A-~][!\"$->A-~]*)?\?[!\"$%'-<>A-~]+=)[^&#]*").fullmatch
"""Matches a path with a query of one named value, of which nothing else is removed; its group 1 is what stands before
that value, in ASCII."""
_NAMED: Final = re.compile(rb"[^&=]+=[^&]*(?:&[^&=]+=[^&]*)*").fullmatch
"""Of a query whose parts all have a name and a value, ..."""
_VALUE: Final = re.compile(rb"=[^&]*")
"""... of which these are the values."""
_REDACTED_VALUE: Final = b"=" + REDACTED
_REDACTED_TEXT: Final = REDACTED.decode()


def text(data: bytes, limit: int = MAX_VALUE) -> str:
    """Bytes of the network as text: at most `limit` of them, those that are not UTF-8 escaped."""
    if len(data) > limit:
        return data[:limit].decode("utf-8", "backslashreplace") + CUT
    return data.decode("utf-8", "backslashreplace")


class Redaction(msgspec.Struct, frozen=True):
    """What a policy has removed: the values of queries, and the values of the named fields (in lower case)."""

    query_values: bool = True
    headers: frozenset[bytes] = frozenset()

    def url(self, target: bytes) -> str:
        """A request target or URL of at most MAX_URL bytes before the redaction."""
        if len(target) <= MAX_URL and is_plain(target) is not None:
            return target.decode()
        if self.query_values and len(target) <= MAX_URL and (found := before_value(target)) is not None:
            return found[1].decode() + _REDACTED_TEXT
        shown = self._url(target[:MAX_URL]).decode("utf-8", "backslashreplace")
        return shown + CUT if len(target) > MAX_URL else shown

    def _url(self, cut: bytes) -> bytes:
        if b"@" in cut:
            cut = _CREDENTIALS.sub(rb"\1" + REDACTED + b"@", cut, count=1)
        if b"#" in cut:
            cut = cut.partition(b"#")[0] + b"#" + REDACTED
        if self.query_values and b"?" in cut:
            path, _, query = cut.partition(b"?")
            if _NAMED(query) is not None:
                return path + b"?" + _VALUE.sub(_REDACTED_VALUE, query)
            # A part has its name only; all of it is a value where there is no name.
            parts = [part.partition(b"=") for part in query.split(b"&")]
            cut = (
                path
                + b"?"
                + b"&".join([name + _REDACTED_VALUE if equals else name and REDACTED for name, equals, _ in parts])
            )
        return cut

    def clean(self, name: bytes, value: bytes) -> bytes:
        """The value of a field whose name is in lower case, as bytes, and whole but for what is removed."""
        if name in SECRET or name in self.headers:
            return REDACTED
        return self._url(value) if name in _URLS else value

    def value(self, name: bytes, value: bytes) -> str:
        """The value of a field whose name is in lower case."""
        if name in SECRET or name in self.headers:
            return _REDACTED_TEXT
        return self.url(value) if name in _URLS else text(value)

    def fields(self, fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
        """Names and values of a head, whole fields from the first one on, until MAX_HEAD is reached."""
        shown = []
        left = MAX_HEAD
        for name, value in fields:
            left -= len(name[:MAX_VALUE]) + min(len(value), MAX_URL)
            if left < 0:
                break
            shown.append((text(name), self.value(name, value)))
        return shown
