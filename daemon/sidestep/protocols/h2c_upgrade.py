"""The request that asks to go on in HTTP/2 on a connection in clear (RFC 7540 section 3.2).

`Upgrade: h2c` with exactly one HTTP2-Settings field: the payload of the client's SETTINGS in base64url without padding.
RFC 9113 no longer describes it; clients such as curl still send it.
"""

from __future__ import annotations

import base64
import re
from typing import Final

TOKEN: Final = b"h2c"
_FIELD: Final = b"http2-settings"
_TOKEN68: Final = re.compile(rb"[A-Za-z0-9_-]{0,1024}={0,2}")


def client_settings(fields: list[tuple[bytes, bytes]]) -> bytes | None:
    """The SETTINGS payload that came with a request, by its fields; None unless there is exactly one to be read."""
    values = [value for name, value in fields if name.lower() == _FIELD]
    if len(values) != 1 or _TOKEN68.fullmatch(values[0]) is None:
        return None
    text = values[0].rstrip(b"=")
    if len(text) % 4 == 1:
        return None
    payload = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    return payload if not len(payload) % 6 else None
