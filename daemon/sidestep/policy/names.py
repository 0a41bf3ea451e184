"""Names of Kubernetes objects (kubernetes.io/docs/concepts/overview/working-with-objects/names)."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MAX_SUBDOMAIN = 253


def is_label(text: str) -> bool:
    """Whether this is an RFC 1123 label, as names of namespaces are."""
    return bool(_LABEL.fullmatch(text))


def is_subdomain(text: str) -> bool:
    """Whether this is an RFC 1123 subdomain, as most names are."""
    return len(text) <= _MAX_SUBDOMAIN and bool(_SUBDOMAIN.fullmatch(text))
