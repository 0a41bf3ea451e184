"""What keeps a pod proxy from serving. The proxy reports it, the daemon leaves to the app what it is about."""

from __future__ import annotations

import msgspec


class Hindrance(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One reason why the proxy cannot serve.

    `kind` is "no-room", "no-descriptors", "no-memory", "cannot-accept" or "cannot-dial"; `port` and `family` (AF_INET,
    AF_INET6) say what cannot be served, 0 stands for all; `error` is the errno that was met, 0 if none was.
    """

    kind: str
    port: int = 0
    family: int = 0
    error: int = 0
