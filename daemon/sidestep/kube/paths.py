"""Paths of the Kubernetes API. Apart from the client, for processes that may load no client."""

from __future__ import annotations

from urllib.parse import quote


def escape(name: str) -> str:
    """Escape a name for use as one segment of a path."""
    return quote(name, safe="")
