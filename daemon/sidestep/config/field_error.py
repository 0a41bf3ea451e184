"""The error for one invalid field of an object."""

from __future__ import annotations

from sidestep.model.errors import ConfigurationError


class FieldError(ConfigurationError):
    """A field that cannot be used. `path` has the form `spec.containers[0].ports[0].containerPort`."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        super().__init__(reason)
