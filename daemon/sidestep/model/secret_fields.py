"""Names of header fields whose values are credentials, and what is shown in the place of such a value."""

from __future__ import annotations

from typing import Final

SECRET: Final = frozenset((b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"))
"""Names, in lower case, of fields whose values are never shown or logged."""

REDACTED: Final = b"[redacted]"
