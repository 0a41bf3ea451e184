"""One parser for each kind of annotation value. An error text is a predicate that follows the annotation's name."""

from __future__ import annotations

import re

from sidestep.config.durations import parse_duration
from sidestep.model.errors import ConfigurationError

MIN_PROBE_TIMEOUT = 0.01
"""Seconds. No TLS handshake completes in less."""
MAX_PROBE_TIMEOUT = 600.0
"""Seconds. No client waits longer for a connection."""
MAX_PATH = 4095
"""Bytes: PATH_MAX of Linux less the terminating NUL (limits.h)."""

_SECRET_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""RFC 1123 subdomain, as the Kubernetes API requires of Secret names."""


def parse_folder(value: str) -> str:
    """Parse the absolute path of a folder in a container. Raises ConfigurationError with the reason."""
    if not value.startswith("/"):
        raise ConfigurationError("must be an absolute path in the container, like /etc/tls")
    if ".." in value.split("/"):
        raise ConfigurationError("must not contain '..'")
    if not value.isprintable():
        raise ConfigurationError("contains characters that do not belong in a path")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigurationError("is not valid UTF-8") from None
    if size > MAX_PATH:
        raise ConfigurationError(f"is {size} bytes long, a path has at most {MAX_PATH}")
    return value


def parse_secret_name(value: str) -> str:
    """Parse the name of a Secret in the pod's namespace. Raises ConfigurationError with the reason."""
    if "/" in value:
        raise ConfigurationError("must be the name of a Secret in the pod's namespace, without any '/'")
    if not _SECRET_NAME.fullmatch(value):
        raise ConfigurationError("is not the name of a Secret (lower-case letters, digits, '-' and '.')")
    return value


def parse_switch(value: str) -> bool:
    """Parse `enabled` or `disabled`. Raises ConfigurationError with the reason."""
    if value not in {"enabled", "disabled"}:
        raise ConfigurationError("must be enabled or disabled")
    return value == "enabled"


def parse_probe_timeout(value: str) -> float:
    """Parse a probe timeout; returns seconds. Raises ConfigurationError with the reason."""
    return parse_duration(value, minimum=MIN_PROBE_TIMEOUT, maximum=MAX_PROBE_TIMEOUT)
