"""The base of strict structs for documents of inspection policies."""

from __future__ import annotations

import msgspec


class PolicyFields(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True):
    """Base struct: camelCase names, immutable, no unknown fields."""
