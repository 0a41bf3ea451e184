"""Sessions that may have a pod make connections, as its proxy is told of them."""

from __future__ import annotations

import msgspec


class AccessSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One session (`model.intercept.Intercept` with `Allow.NETWORK`)."""

    uid: str
    allow_loopback: bool = False
    """Connections to the pod's loopback are permitted."""
