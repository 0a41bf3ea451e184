"""Which requests are gRPC, by their Content-Type ("gRPC over HTTP/2", Requests).

`application/grpc` alone, or with a suffix (`+proto`) or parameters (`;charset=…`). Others only begin alike:
`application/grpc-web` is a protocol for HTTP/1.1, whose clients read statuses and bodies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_CONTENT_TYPE: Final = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE | re.DOTALL)


def is_grpc(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether these fields (lower-case names) are those of a gRPC request."""
    return any(name == b"content-type" and _CONTENT_TYPE.fullmatch(value) is not None for name, value in fields)
